// The page of a comparison.

const splitName = (split) => ({ val: "validation" })[split] || split;

/** A result as it was published: with two digits, where it has them. */
const published = (value) => (value === null ? NONE : Number((100 * value).toFixed(2)) + " %");

const range2 = ([low, high]) =>
  low === high ? published(low) : published(low).replace(" %", "") + " to " + published(high);

/** A mean and, where there is one, its standard deviation. */
const spread = (mean, std) =>
  mean === null || std === null ? percent(mean) : (100 * mean).toFixed(1) + " \u00b1 " + percent(std);

/** The address of a run's page: its name is the path of its folder. */
const runAddress = (name) => name.split("/").map(encodeURIComponent).join("/") + "/report.html";

const meanOf = (data, run) => data.means.find((mean) => mean.runs.includes(run));

/** Rows of runs that are in no mean, and the means, each where its first run is. */
function techniques(data) {
  return data.rows
    .filter((row) => (meanOf(data, row.name) || { runs: [row.name] }).runs[0] === row.name)
    .map((row) => {
      const mean = meanOf(data, row.name);
      return mean ? { ...mean, values: mean.mean } : { ...row, values: row, std: null, seeds: null };
    });
}

/** The columns of what others publish; none where nothing is. */
function publishedColumns(rows) {
  if (!rows.some((row) => row.published)) return [];
  const val = (row) => (row.published ? row.published.val_top1 : null);
  return [
    {
      name: "Published test",
      key: (row) => (row.published ? row.published.test_top1[1] : null),
      text: (row) => (row.published ? range2(row.published.test_top1) : NONE),
    },
    { name: "Published validation", key: val, text: (row) => published(val(row)) },
  ];
}

const resultName = (data) => (data.split === "val" ? "Result top\u20111" : "Test top\u20111");

function meanColumns(data, rows) {
  const score = (name, key, title, bounds) => ({
    name,
    title,
    key: (row) => row.values[key],
    content: (row) => withInterval(spread(row.values[key], row.std && row.std[key]), row[bounds]),
  });
  return [
    { name: "Technique", key: (row) => row.name, text: (row) => row.name },
    {
      name: "Seeds",
      key: (row) => (row.seeds ? row.seeds.length : null),
      text: (row) => (row.seeds ? String(row.seeds.length) : NONE),
    },
    score("Validation top\u20111", "val_top1", undefined, "val_interval"),
    score(resultName(data), "test_top1", undefined, "test_interval"),
    ...(data.classes > 5 ? [score("Top\u20115", "test_top5")] : []),
    score("Macro F1", "macro_f1"),
    score("ECE", "ece", "Expected calibration error"),
    {
      name: "Trained parameters",
      key: (row) => row.trained_parameters,
      text: (row) => whole(row.trained_parameters),
    },
    ...publishedColumns(rows),
  ];
}

function comparedColumns(data) {
  const number = (name, key, format, title) => ({ name, title, key, text: (row) => format(key(row)) });
  const accuracy = (name, key, bounds) => ({
    name,
    title: "With its 95 % interval",
    key: (row) => row[key],
    content: (row) => withInterval(percent(row[key]), row[bounds]),
  });
  const columns = [
    {
      name: data.means.length > 0 ? "Run" : "Technique",
      key: (row) => row.name,
      content: (row) =>
        row.page ? element("a", { href: runAddress(row.name) }, row.name) : row.name,
    },
    { name: "Recipe", key: (row) => row.recipe, text: (row) => row.recipe },
    accuracy("Validation top\u20111", "val_top1", "val_interval"),
    accuracy(resultName(data), "test_top1", "test_interval"),
    ...(data.classes > 5 ? [number("Top\u20115", (row) => row.test_top5, percent)] : []),
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
      (row) => row.seconds || null,
      (value) => fixed(value, 1),
    ),
    number(
      "Images/s",
      (row) => (row.epochs ? row.images_per_s : null),
      (value) => fixed(value, 0),
    ),
  ];
  return [...columns, ...publishedColumns(data.rows)];
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
    const dots = dotsOf(data.class_names, a.recalls, b.recalls);
    place.replaceChildren(scatterChart(data.charts.square, [a.name, b.name], dots), recallTable(data, a, b));
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

/** The table of the means, where there are some, and that of the runs. */
function resultTables(data) {
  const several = data.means.length > 0;
  const runs = sortableTable({
    caption: several ? "Runs beside each other" : "Techniques beside each other",
    columns: comparedColumns(data),
    rows: data.rows,
    wide: true,
  });
  if (!several) return [runs.box];
  const rows = techniques(data);
  const means = sortableTable({
    caption: "Techniques beside each other",
    columns: meanColumns(data, rows),
    rows,
    wide: true,
  });
  return [means.box, element("h3", {}, "Runs"), runs.box];
}

const INTERVALS =
  " Small below an accuracy: its 95 % interval (Wilson), by the number of images alone.";

function comparisonPage(data) {
  const split = splitName(data.split);
  const { techniques, curves } = data.charts;
  const where =
    data.split === "val" ? " There is no test split; the results are on the validation split." : "";
  const means =
    data.means.length > 0 ? " Means \u00b1 standard deviations are of runs that differ in their seed alone." : "";
  const parts = [
    element("h1", {}, "Comparison"),
    element("p", { class: "note" }, originText(data.origin)),
    section("Results", "All on the same images." + where + means + INTERVALS, ...resultTables(data)),
    section(
      "Accuracy",
      data.means.length > 0 ? "A curve is the mean of the runs that had the epoch; the runs are faint behind it." : null,
      element("div", { class: "columns" }, figure(techniques), curves ? figure(curves) : null),
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
    const taken = [...new Set(picture.choices)].map((label) => named(data.class_names[label]));
    return [data.class_names[picture.label], "taken for " + taken.join(", ")];
  };
  return section(
    "What every run gets wrong",
    total + "." + shown + rootNote(data),
    thumbnails(pictures, names),
  );
}
