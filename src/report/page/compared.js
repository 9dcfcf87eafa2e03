// The page of a comparison.

const splitName = (split) => ({ val: "validation" })[split] || split;

const range2 = ([low, high]) =>
  low === high ? percent(low) : (100 * low).toFixed(2) + " to " + percent(high);

function comparedColumns(data) {
  const number = (name, key, format, title) => ({ name, title, key, text: (row) => format(key(row)) });
  const columns = [
    {
      name: "Technique",
      key: (row) => row.name,
      content: (row) =>
        row.page ? element("a", { href: encodeURIComponent(row.name) + "/report.html" }, row.name) : row.name,
    },
    { name: "Recipe", key: (row) => row.recipe, text: (row) => row.recipe },
    number("Validation top\u20111", (row) => row.val_top1, percent),
    number(data.split === "val" ? "Result top\u20111" : "Test top\u20111", (row) => row.test_top1, percent),
    number("Top\u20115", (row) => row.test_top5, percent),
    number("Text top\u20111", (row) => row.text_top1, percent, "Top-1 of the text logits"),
    number("Macro F1", (row) => row.macro_f1, percent),
    number("ECE", (row) => row.ece, percent, "Expected calibration error"),
    number("Trained parameters", (row) => row.trained_parameters, whole),
    number(
      "Kept epoch",
      (row) => (row.epochs ? row.best_epoch : null),
      (value) => (value === null ? NONE : String(value)),
    ),
    number(
      "Seconds",
      (row) => (row.epochs ? row.seconds : null),
      (value) => fixed(value, 1),
    ),
    number(
      "Images/s",
      (row) => (row.epochs ? row.images_per_s : null),
      (value) => fixed(value, 0),
    ),
  ];
  if (data.rows.some((row) => row.published)) {
    columns.push({
      name: "Published test",
      key: (row) => (row.published ? row.published.test_top1[1] : null),
      text: (row) => (row.published ? range2(row.published.test_top1) : NONE),
    });
    columns.push(
      number("Published validation", (row) => (row.published ? row.published.val_top1 : null), percent),
    );
  }
  return columns;
}

function comparedBars(data) {
  const bars = data.rows.map((row) => ({
    name: row.name,
    value: row.test_top1,
    range: row.published ? row.published.test_top1 : null,
    plain: !row.epochs,
    text:
      row.name +
      ": " +
      percent(row.test_top1) +
      (row.published ? ", published " + range2(row.published.test_top1) : ""),
  }));
  return barChart({ title: "Top-1 on the " + splitName(data.split) + " split", bars });
}

function comparedCurves(data) {
  const epochs = [...new Set(data.curves.flatMap((curve) => curve.epochs))].sort((a, b) => a - b);
  if (epochs.length === 0) return null;
  const lines = data.curves.map((curve) => {
    const at = new Map(curve.epochs.map((epoch, i) => [epoch, curve.top1[i]]));
    return { name: curve.name, values: epochs.map((epoch) => (at.has(epoch) ? at.get(epoch) : null)) };
  });
  const format = (value) => percent(value);
  const axisFormat = (value) => percent(value, 0);
  return lineChart({ title: "Validation top-1", epochs, lines, bounds: [0, 1], format, axisFormat });
}

/** Classes at the same place of the square are one dot. */
function dotsOf(names, first, second) {
  const dots = new Map();
  names.forEach((name, i) => {
    const [x, y] = [first[i], second[i]];
    if (x === null || y === null) return;
    const key = x + "/" + y;
    if (!dots.has(key)) dots.set(key, { x, y, names: [] });
    dots.get(key).names.push(name);
  });
  return [...dots.values()].sort((a, b) => a.x - b.x || a.y - b.y);
}

function recallTable(data, a, b) {
  const rows = data.class_names.map((name, i) => {
    const [x, y] = [a.recalls[i], b.recalls[i]];
    return { name, x, y, difference: x === null || y === null ? null : y - x };
  });
  const { box } = sortableTable({
    caption: "Recall per class",
    columns: [
      { name: "Class", key: (row) => row.name, text: (row) => row.name },
      { name: a.name, key: (row) => row.x, text: (row) => percent(row.x, 1) },
      { name: b.name, key: (row) => row.y, text: (row) => percent(row.y, 1) },
      {
        name: "Difference",
        key: (row) => row.difference,
        text: (row) => (row.difference === null ? NONE : points(row.difference, 1)),
      },
    ],
    rows,
    sorted: [3, "ascending"],
  });
  return box;
}

/** Two runs against each other, chosen from two lists. */
function recallPair(data) {
  const chosen = [0, Math.min(1, data.recalls.length - 1)];
  const place = element("div", { class: "columns" });
  const draw = () => {
    const [a, b] = chosen.map((i) => data.recalls[i]);
    const chart = scatterChart({
      title: "A point for each class",
      axes: [a.name, b.name],
      dots: dotsOf(data.class_names, a.recalls, b.recalls),
    });
    place.replaceChildren(chart, recallTable(data, a, b));
    drawCharts();
  };
  const list = (label, i) => {
    const options = data.recalls.map((entry, value) =>
      element("option", { value, selected: value === chosen[i] ? "" : null }, entry.name),
    );
    const choose = (event) => {
      chosen[i] = Number(event.target.value);
      draw();
    };
    return element("label", {}, label + " ", element("select", { onchange: choose }, ...options));
  };
  draw();
  return [element("div", { class: "controls choice" }, list("Run", 0), list("against", 1)), place];
}

function comparisonPage(data) {
  const table = sortableTable({
    caption: "Techniques beside each other",
    columns: comparedColumns(data),
    rows: data.rows,
    wide: true,
  });
  const split = splitName(data.split);
  const where =
    data.split === "val" ? " There is no test split; the results are on the validation split." : "";
  const published = data.rows.some((row) => row.published);
  const parts = [
    element("h1", {}, "Comparison"),
    section("Results", "All on the same images." + where, table.box),
    section(
      "Accuracy",
      published ? "A bracket under a bar spans what others publish for the technique." : null,
      element("div", { class: "columns" }, comparedBars(data), comparedCurves(data)),
    ),
  ];
  if (data.recalls.length > 0) {
    const note =
      "Recall on the " + split + " split. Above the diagonal the second run finds more of a class.";
    parts.push(section("Classes", note, ...recallPair(data)));
    parts.push(commonMistakes(data));
  }
  return parts;
}

function commonMistakes(data) {
  const total = plural(data.mistakes_in_all, "image");
  if (data.mistakes_in_all === 0) return section("What every run gets wrong", "No image.");
  const shown =
    data.mistakes.length < data.mistakes_in_all ? " The " + data.mistakes.length + " surest are shown." : "";
  const pictures = data.mistakes.map((place, i) => ({ ...data.images[place], choices: data.choices[i] }));
  const names = (picture) => {
    const taken = [...new Set(picture.choices)].map((label) => data.class_names[label]);
    return [data.class_names[picture.label], "taken for " + taken.join(", ")];
  };
  return section(
    "What every run gets wrong",
    total + "." + shown + rootNote(data),
    thumbnails(pictures, names),
  );
}
