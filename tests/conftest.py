"""What every test needs of its process."""

import signal

# A shell without job control starts background jobs with the interrupt ignored, and processes that a test starts inherit that:
# a test that interrupts one would then wait for its end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
