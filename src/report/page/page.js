// The page of a run, and the start of either page.

/** Model, data, date and version, as they stand under the title. */
function originText({ model, data, date, version }) {
  return [model + " on " + data, date, "clip-engine " + version].filter((part) => part).join(" \u00b7 ");
}

function runHeadline(data) {
  const { result, val, zero_shot: plain, intervals, ...run } = data.headline;
  const [own, ofVal, ofPlain] = intervals.map((bounds) => "95 %: " + interval(bounds));
  const split = data.split === "val" ? "Validation" : "Test";
  return facts(
    [
      [split + " top-1", percent(result.top1), own + ", " + plural(result.images, "image")],
      ["Plain CLIP", percent(plain.top1), ofPlain + ", " + splitName(plain.split) + " split"],
      ["Gain", plain.split === data.split ? points(result.top1 - plain.top1) : NONE, "over plain CLIP"],
      data.class_names.length > 5 ? [split + " top-5", percent(result.top5)] : null,
      ["Macro F1", percent(result.macro_f1)],
      ["Calibration error", percent(data.ece), "ECE, " + data.bins + " bins"],
      data.split === "val" ? null : ["Validation top-1", percent(val.top1), ofVal + ", " + plural(val.images, "image")],
      [
        "Kept epoch",
        String(run.best_epoch),
        "of " + run.epochs + (run.stopped_early ? ", stopped early" : ""),
      ],
      ["Trained parameters", whole(run.trained_parameters)],
      [
        "Time",
        duration(run.seconds),
        Math.round(run.images_per_s).toLocaleString("en") + " images/s in training",
      ],
      ["Device", run.device],
    ].filter((fact) => fact !== null),
  );
}

function runCurves({ charts }) {
  if (charts.curves.length === 0) return null;
  const note =
    "Point at a chart, touch it, or use the arrow keys in it for the values of an epoch. " +
    "The parts of a loss are shown before they are weighted, means of an epoch over those of steps. " +
    "Of lines that lie on each other the lower is wider.";
  return section("Curves", note, element("div", { class: "columns" }, ...charts.curves.map((chart) => figure(chart))));
}

/** The run beside plain CLIP and, where it was fitted, the baseline. */
function resultTable(data) {
  const column = (name, key, format, title) => ({
    name,
    title,
    key: (row) => row[key],
    text: (row) => (row[key] === null ? NONE : format(row[key])),
  });
  const known = (key) => data.results.some((row) => row[key] !== null);
  const top1 = {
    ...column("Top\u20111", "top1", percent, "With its 95 % interval"),
    content: (row) => withInterval(percent(row.top1), row.interval),
  };
  const columns = [
    { name: "Classifier", key: (row) => row.name, text: (row) => row.name },
    { name: "Split", key: (row) => row.split, text: (row) => splitName(row.split) },
    top1,
    data.class_names.length > 5 ? column("Top\u20115", "top5", percent) : null,
    column("Macro F1", "macro_f1", percent),
    known("nll") ? column("NLL", "nll", fixed, "Mean negative log probability of the right class") : null,
    known("brier") ? column("Brier", "brier", fixed, "Brier score") : null,
    column("ECE", "ece", percent, "Expected calibration error"),
    column("Time", "seconds", duration, "Of training and validation"),
  ].filter((entry) => entry !== null);
  const { box } = sortableTable({ caption: "Results", columns, rows: data.results, wide: true });
  const note = "Small below an accuracy: its 95 % interval (Wilson), by the number of images alone.";
  return section("Results", note, box);
}

/** The classifiers that were tried, and why one of them was kept. */
function runLadder({ ladder, charts }) {
  if (ladder === null) return null;
  const scores = (name, split, key, format, title) => ({
    name,
    title,
    key: (row) => (row[split] ? row[split][key] : null),
    text: (row) => (row[split] ? format(row[split][key]) : NONE),
  });
  const top1 = (name, split) => ({
    ...scores(name, split, "top1", percent, "With its 95 % interval"),
    content: (row) => (row[split] ? withInterval(percent(row[split].top1), row[split].interval) : NONE),
  });
  const nll = (name, split) => scores(name, split, "nll", fixed, "Mean negative log probability of the right class");
  const tested = ladder.rungs.some((row) => row.test);
  const small = (text) => (text ? element("small", {}, text) : null);
  const columns = [
    {
      name: "Classifier",
      title: "In the order in which they were tried",
      key: (row) => String(ladder.rungs.indexOf(row)),
      content: (row) => [row.name, small(row.chosen), small(row.kept ? "kept" : "")],
    },
    top1("Validation top\u20111", "val"),
    nll("Validation NLL", "val"),
    tested ? top1("Test top\u20111", "test") : null,
    tested ? nll("Test NLL", "test") : null,
    { name: "Time", title: "Beyond those before", key: (row) => row.seconds, text: (row) => duration(row.seconds) },
  ].filter((column) => column !== null);
  const { box, records } = sortableTable({ caption: "What was tried", columns, rows: ladder.rungs, wide: true });
  for (const { row, line } of records) if (row.kept) line.classList.add("marked");
  return section("What was tried", ladder.reason, box, figure(charts.ladder));
}

/** What the temperature does to the probabilities. */
function temperatureTable({ temperature }) {
  if (temperature === null) return [];
  const { value, before, after, chance } = temperature;
  const rows = [
    { name: "NLL", key: "nll", format: fixed },
    { name: "Brier score", key: "brier", format: fixed },
    { name: "ECE", key: "ece", format: percent },
  ];
  const cell = (text) => element("td", { class: "number" }, text);
  const line = ({ name, key, format }) =>
    element("tr", {}, element("th", { scope: "row" }, name), cell(format(before[key])), cell(format(after[key])));
  const heads = ["", "before (T = 1)", "after (T = " + fixed(value, 3) + ")"];
  const head = heads.map((text, i) =>
    element("th", { scope: "col", class: i ? "number" : null }, element("span", {}, text)),
  );
  const table = element(
    "table",
    { class: "temperature" },
    element("caption", {}, "Temperature"),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows.map(line)),
  );
  const calibrated = "A calibrated classifier with the same confidences has an ECE of ";
  const range = chance ? ` ${calibrated}${chance.map((ece) => percent(ece)).join(" to ")} in 95 of 100 cases.` : "";
  const note =
    "Temperature " + fixed(value, 3) + ": what the logits are divided by before they become probabilities." + range;
  return [
    element("h3", {}, "Temperature"),
    element("p", { class: "note" }, note),
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Temperature" }, table),
  ];
}

function runSettings(data) {
  const lines = data.settings.map(({ key, value, default: usual }) =>
    element(
      "tr",
      { class: usual === undefined ? null : "marked" },
      element("th", { scope: "row" }, key),
      element(
        "td",
        {},
        value,
        usual === undefined ? null : element("small", {}, "default: " + (usual || "none")),
      ),
    ),
  );
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, element("span", {}, "Setting")),
    element("th", { scope: "col" }, "Value"),
  );
  const changed = data.settings.filter((line) => line.default !== undefined).length;
  const note =
    plural(changed, "setting differs", "settings differ") +
    " from the defaults of the recipe " +
    data.recipe +
    (changed ? " and " + (changed === 1 ? "is" : "are") + " marked." : ".");
  const table = element(
    "table",
    { class: "settings" },
    element("caption", {}, "Settings"),
    element("thead", {}, head),
    element("tbody", {}, ...lines),
  );
  return section(
    "Settings",
    note,
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Settings" }, table),
  );
}

function classTable(data) {
  const rows = data.class_names.map((name, i) => ({
    number: i + 1,
    name,
    ...data.classes[i],
    bounds: data.intervals[i],
    plain: data.zero_shot[i] ? data.zero_shot[i].recall : null,
  }));
  const score = (name, key, title) => ({ name, title, key, text: (row) => percent(key(row), 1) });
  const { box, records } = sortableTable({
    caption: "Results per class",
    columns: [
      { name: "Class", key: (row) => row.name, text: (row) => row.name },
      {
        name: "No.",
        title: "Number in the confusion matrix",
        key: (row) => row.number,
        text: (row) => String(row.number),
      },
      { name: "Images", key: (row) => row.images, text: (row) => whole(row.images) },
      score("Precision", (row) => row.precision, "Right among the images that are taken for the class"),
      score("Recall", (row) => row.recall, "Right among the images of the class"),
      {
        name: "95 % interval",
        title: "Of the recall (Wilson)",
        key: (row) => (row.images ? row.bounds[0] : null),
        text: (row) => (row.images ? interval(row.bounds) : NONE),
      },
      score("F1", (row) => row.f1),
      score("Plain CLIP's recall", (row) => row.plain),
    ],
    rows,
    sorted: [1, "ascending"],
  });
  return [filterBox(records, "Classes that contain", (row) => row.name), box];
}

function confidentMistakes(data) {
  if (data.mistakes_in_all === 0) return section("Most confident mistakes", "There are no mistakes.");
  const shown =
    data.mistakes.length < data.mistakes_in_all
      ? ", " + data.mistakes.length + " of " + whole(data.mistakes_in_all) + " mistakes."
      : ".";
  const note = "Wrong, and the surest of it" + shown + rootNote(data);
  const pictures = data.mistakes.map((place) => data.images[place]);
  const captions = (picture) => [
    data.class_names[picture.label],
    "taken for " + named(data.class_names[picture.predicted]),
    percent(picture.confidence, 1),
  ];
  return section("Most confident mistakes", note, thumbnails(pictures, captions));
}

function runPage(data) {
  const split = splitName(data.split);
  return [
    element("h1", {}, data.name),
    element("p", { class: "note" }, originText(data.origin)),
    element(
      "p",
      { class: "note" },
      "Recipe " +
        data.recipe +
        ", " +
        plural(data.class_names.length, "class", "classes") +
        ", results on the " +
        split +
        " split.",
    ),
    runHeadline(data),
    resultTable(data),
    runLadder(data),
    runCurves(data),
    section("Classes", "On the " + split + " split. A click on a column's head sorts.", ...classTable(data)),
    section(
      "Confusion matrix",
      "A row for what an image is, a column for what it is taken for; numbers are those of the table of classes. " +
        "A click or Enter opens the images of a cell." +
        rootNote(data),
      ...confusionMatrix(data),
    ),
    section(
      "Calibration",
      "How often the head is right at a confidence, and how many images have that confidence. ECE " +
        percent(data.ece) +
        ".",
      figure(data.charts.calibration),
      ...temperatureTable(data),
    ),
    confidentMistakes(data),
    runSettings(data),
  ];
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const parts = data.kind === "run" ? runPage(data) : comparisonPage(data);
  document.title = (data.kind === "run" ? data.name : "Comparison") + " \u2013 " + originText(data.origin);
  document.getElementById("page").replaceChildren(...parts.filter((part) => part !== null));
}

start();
