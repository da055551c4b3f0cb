(function () {
  var data = JSON.parse(document.getElementById("data").textContent), columns = data.columns, byCase = {};
  var tip = document.getElementById("tip"), spoken = document.getElementById("spoken"), last = columns.length + 2;
  data.rows.forEach(function (row) { byCase[row[0]] = row; });
  function text(v) {
    if (v === null || v === undefined) return "–";
    if (v === true || v === false) return v ? "yes" : "no";
    if (typeof v !== "number") return String(v);
    if (v !== 0 && (Math.abs(v) >= 1e7 || Math.abs(v) < 1e-4)) return v.toExponential(2);
    return Math.abs(v) >= 100 ? v.toLocaleString("en-US", { maximumFractionDigits: 0 }) : String(Number(v.toPrecision(3)));
  }
  function pairs(row) {
    return columns.map(function (c, i) { return [c, row[i + 2]]; }).filter(function (p) { return p[0].setting || p[1] !== null; });
  }
  function words(row) {
    return pairs(row).map(function (p) { return p[0].label + " " + text(p[1]); }).join(", ") + (row[last] ? ". " + row[last] : "");
  }
  function el(name, content, kind) {
    var node = document.createElement(name);
    if (content !== undefined) node.textContent = content;
    if (kind) node.className = kind;
    return node;
  }

  /* tooltip */
  var current = null;
  function show(mark, x, y) {
    var row = byCase[mark.dataset.i];
    if (!row) return;
    if (current) current.classList.remove("on");
    current = mark;
    mark.classList.add("on");
    tip.replaceChildren();
    var list = el("dl");
    pairs(row).forEach(function (p) {
      list.append(el("dt", p[0].label, p[0].setting ? "s" : ""), el("dd", text(p[1]), p[0].setting ? "s" : ""));
    });
    tip.append(list);
    if (row[last]) tip.append(el("p", row[last], "why"));
    tip.hidden = false;
    var box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, x + 16 + box.width > innerWidth ? x - box.width - 12 : x + 16) + "px";
    tip.style.top = Math.max(4, Math.min(y + 12, innerHeight - box.height - 6)) + "px";
  }
  function hide() {
    tip.hidden = true;
    if (current) current.classList.remove("on");
    current = null;
  }
  function walk(plot, step) {
    var marks = Array.prototype.filter.call(plot.querySelectorAll(".m"), function (m) { return !m.classList.contains("gone"); });
    if (!marks.length) return;
    var at = marks.indexOf(plot.current);
    at = step === "first" ? 0 : step === "last" ? marks.length - 1 : at < 0 ? 0 : Math.min(marks.length - 1, Math.max(0, at + step));
    plot.current = marks[at];
    var box = plot.current.getBoundingClientRect();
    show(plot.current, box.left + box.width / 2, box.top + box.height / 2);
    spoken.textContent = words(byCase[plot.current.dataset.i]);
  }
  var keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: "first", End: "last" };
  document.querySelectorAll("svg.plot").forEach(function (plot) {
    if (!plot.querySelector(".m")) { plot.removeAttribute("tabindex"); return; }
    plot.addEventListener("mousemove", function (event) {
      var mark = event.target.closest(".m");
      if (mark) show(mark, event.clientX, event.clientY); else hide();
    });
    plot.addEventListener("mouseleave", hide);
    plot.addEventListener("focus", function () { if (plot.matches(":focus-visible")) walk(plot, 0); });
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", function (event) {
      if (event.key === "Escape") hide();
      if (!(event.key in keys)) return;
      event.preventDefault();
      walk(plot, keys[event.key]);
    });
  });

  /* filter */
  var feasible = document.getElementById("feasible"), bar = document.getElementById("filter"), selects = [];
  columns.forEach(function (c, i) {
    if (!c.setting) return;
    var values = [];
    data.rows.forEach(function (row) { if (values.indexOf(row[i + 2]) < 0 && values.length < 26) values.push(row[i + 2]); });
    if (values.length < 2 || values.length > 25) return;
    values.sort(function (a, b) { return typeof a === "number" && typeof b === "number" ? a - b : 0; });
    var label = el("label", c.label + " "), select = el("select");
    select.append(new Option("any", ""));
    values.forEach(function (v, k) { select.append(new Option(text(v), k)); });
    select.dataset.column = i;
    label.append(select);
    bar.insertBefore(label, document.getElementById("reset"));
    selects.push({ select: select, at: i + 2, values: values });
  });
  function passes(row) {
    if (feasible.value === "ok" && !row[1]) return false;
    if (feasible.value === "bad" && row[1]) return false;
    return selects.every(function (s) { return s.select.value === "" || row[s.at] === s.values[Number(s.select.value)]; });
  }
  var shown = [], visible = 100, order = data.sort === null ? null : data.sort + 2, down = data.descending;
  function filter() {
    var keep = {};
    shown = data.rows.filter(passes);
    shown.forEach(function (row) { keep[row[0]] = true; });
    document.querySelectorAll("svg.plot .m").forEach(function (mark) { mark.classList.toggle("gone", !keep[mark.dataset.i]); });
    document.getElementById("shown").textContent = shown.length.toLocaleString("en-US") + " of " + data.rows.length.toLocaleString("en-US") + " shown";
    visible = 100;
    hide();
    sort();
  }

  /* table */
  var numeric = columns.map(function (c, i) {
    return data.rows.some(function (row) { return typeof row[i + 2] === "number"; });
  });
  var head = document.querySelector("#rows thead"), body = document.querySelector("#rows tbody"), more = document.getElementById("more");
  var headings = el("tr");
  columns.concat([{ label: data.why }]).forEach(function (c, i) {
    var th = el("th"), button = el("button", c.label, "sort");
    th.scope = "col";
    if (i < columns.length && numeric[i]) th.className = "n";
    button.type = "button";
    button.addEventListener("click", function () {
      down = order === i + 2 ? !down : false;
      order = i + 2;
      sort();
    });
    th.append(button);
    headings.append(th);
  });
  head.append(headings);
  function sort() {
    if (order !== null) {
      shown.sort(function (a, b) {
        var x = a[order], y = b[order];
        if (x === null || x === "") return y === null || y === "" ? a[0] - b[0] : 1;
        if (y === null || y === "") return -1;
        var sign = x < y ? -1 : x > y ? 1 : 0;
        return (down ? -sign : sign) || a[0] - b[0];
      });
    }
    Array.prototype.forEach.call(headings.children, function (th, i) {
      if (i + 2 === order) th.setAttribute("aria-sort", down ? "descending" : "ascending"); else th.removeAttribute("aria-sort");
    });
    draw();
  }
  function draw() {
    body.replaceChildren.apply(body, shown.slice(0, visible).map(function (row) {
      var tr = el("tr");
      tr.dataset.i = row[0];
      columns.forEach(function (c, i) { tr.append(el("td", text(row[i + 2]), numeric[i] ? "n" : "")); });
      tr.append(el("td", row[last], "why"));
      return tr;
    }));
    more.hidden = visible >= shown.length;
  }
  more.addEventListener("click", function () { visible += 100; draw(); });

  /* download */
  function quoted(v) {
    var t = v === null ? "" : String(v);
    return /[",\n]/.test(t) ? '"' + t.replace(/"/g, '""') + '"' : t;
  }
  function csv() {
    var lines = [["case"].concat(columns.map(function (c) { return c.label; }), [data.why])];
    shown.forEach(function (row) { lines.push([row[0]].concat(row.slice(2))); });
    return lines.map(function (line) { return line.map(quoted).join(","); }).join("\n") + "\n";
  }
  var link = document.getElementById("download"), url = null;
  function prepare() {
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.href = url;
    link.download = data.name + ".csv";
  }
  link.addEventListener("click", prepare);
  link.addEventListener("focus", prepare);

  feasible.addEventListener("change", filter);
  selects.forEach(function (s) { s.select.addEventListener("change", filter); });
  document.getElementById("reset").addEventListener("click", function () {
    feasible.value = "all";
    selects.forEach(function (s) { s.select.value = ""; });
    filter();
  });
  filter();
  prepare();
})();
