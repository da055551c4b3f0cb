"""Where tasks run: in this process, on its cores, or on a Dask cluster. What comes back is the same, only its order is not."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from typing import Any

from moesim.errors import InputError, MissingExtraError
from moesim.study.sweep.task import Answer, run_task
from moesim.study.sweep.tasks import Task

__all__ = ["answers"]

CONNECT_S = 20


def answers(tasks: Sequence[Task], n_jobs: int = 1, scheduler: str | None = None) -> Generator[Answer, None, None]:
    """Answers of all tasks as they come.

    Args:
        tasks: what to do.
        n_jobs: processes on this machine; 1 stays in this one.
        scheduler: address of a Dask scheduler, such as ``tcp://host:8786``, whose workers do all of it.

    Raises:
        MissingExtraError: a scheduler without Dask installed.
        InputError: no scheduler answers at the address.
    """
    if scheduler is not None:
        yield from _on_cluster(tasks, scheduler)
    elif n_jobs == 1 or len(tasks) < 2:
        for task in tasks:
            yield run_task(task)
    else:
        yield from _parallel(tasks, n_jobs=min(n_jobs, len(tasks)) if n_jobs > 0 else n_jobs)


def _parallel(tasks: Sequence[Task], **options: Any) -> Generator[Answer, None, None]:
    from joblib import Parallel, delayed

    run = Parallel(return_as="generator_unordered", batch_size=1, **options)
    yield from run(delayed(run_task)(task) for task in tasks)


def _client(scheduler: str) -> Any:
    try:
        import distributed
    except ImportError:
        raise MissingExtraError("dask.distributed", "dask") from None
    connect: Any = distributed.Client
    return connect(scheduler, timeout=CONNECT_S)


def _on_cluster(tasks: Sequence[Task], scheduler: str) -> Generator[Answer, None, None]:
    from joblib import parallel_config

    with ExitStack() as stack:
        try:
            client: Any = stack.enter_context(_client(scheduler))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                "no Dask scheduler answers there",
                field="--scheduler",
                value=scheduler,
                hint=str(error).split("\n")[0][:80],
            ) from None
        if not client.scheduler_info()["workers"]:
            client.wait_for_workers(1, timeout=CONNECT_S)
        stack.enter_context(parallel_config(backend="dask", client=client, wait_for_workers_timeout=CONNECT_S))
        yield from _parallel(tasks, n_jobs=-1)
