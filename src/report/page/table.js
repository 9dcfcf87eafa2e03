// Tables that sort by a click on a column's head, and a filter for their rows.

/** -1, 0 or 1; what is missing comes last in either direction. */
function order(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "string") return direction * a.localeCompare(b, "en", { numeric: true });
  return direction * (a - b);
}

/**
 * A table of `rows`. `columns`: name, key(row) to sort by (text, number or null), text(row), and
 * content(row) where that is more than text. The first column names the row.
 */
function sortableTable({ caption, columns, rows, sorted, wide }) {
  const numeric = columns.map((column) => rows.some((row) => typeof column.key(row) === "number"));
  const records = rows.map((row) => ({ row, line: tableRow(columns, numeric, row) }));
  const body = element("tbody", {}, ...records.map((record) => record.line));
  const heads = columns.map((column, i) =>
    element(
      "th",
      { scope: "col", class: numeric[i] ? "number" : null, "aria-sort": "none" },
      element("button", { type: "button", title: column.title, onclick: () => sort(i) }, column.name),
    ),
  );
  function sort(i, wanted) {
    const now = heads[i].getAttribute("aria-sort");
    const first = numeric[i] ? "descending" : "ascending";
    const second = numeric[i] ? "ascending" : "descending";
    const direction = wanted || (now === first ? second : first);
    for (const head of heads) head.setAttribute("aria-sort", "none");
    heads[i].setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    records.sort((a, b) => order(columns[i].key(a.row), columns[i].key(b.row), sign));
    body.append(...records.map((record) => record.line));
  }
  if (sorted) sort(sorted[0], sorted[1]);
  const table = element(
    "table",
    { class: wide ? "wide" : null },
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads)),
    body,
  );
  const box = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);
  return { box, records };
}

function tableRow(columns, numeric, row) {
  const cells = columns.map((column, i) => {
    const content = column.content ? [column.content(row)].flat() : [column.text(row)];
    if (i === 0) return element("th", { scope: "row", dir: "auto" }, ...content);
    return element("td", { class: numeric[i] ? "number" : null }, ...content);
  });
  return element("tr", {}, ...cells);
}

/** A box that hides the rows whose name does not contain what is typed. */
function filterBox(records, label, nameOf) {
  const count = element("output", {});
  const input = element("input", { type: "search", autocomplete: "off", oninput: filter });
  function filter() {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const { row, line } of records) {
      line.hidden = !nameOf(row).toLowerCase().includes(wanted);
      shown += line.hidden ? 0 : 1;
    }
    count.textContent = shown + " of " + records.length;
  }
  filter();
  return element("div", { class: "controls" }, element("label", {}, label + " ", input), count);
}
