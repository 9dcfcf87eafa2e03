// The page of a run, and the start of either page.

function runHeadline(data) {
  const { result, val, zero_shot: plain, ...run } = data.headline;
  const split = data.split === "val" ? "Validation" : "Test";
  return facts(
    [
      [split + " top-1", percent(result.top1), plural(result.images, "image")],
      ["Plain CLIP", percent(plain.top1), "zero-shot, " + splitName(plain.split) + " split"],
      ["Gain", plain.split === data.split ? points(result.top1 - plain.top1) : NONE, "over plain CLIP"],
      [split + " top-5", percent(result.top5)],
      ["Macro F1", percent(result.macro_f1)],
      ["Calibration error", percent(data.ece), "ECE, " + data.calibration.length + " bins"],
      data.split === "val" ? null : ["Validation top-1", percent(val.top1)],
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

function runCurves(data) {
  const epochs = data.epochs.map((record) => record.epoch);
  if (epochs.length === 0) return null;
  const line = (name, value) => ({ name, values: data.epochs.map(value) });
  const plain = data.headline.zero_shot;
  const kept = data.headline.best_epoch;
  const percentages = {
    bounds: [0, 1],
    format: (value) => percent(value),
    // As many digits as neighbouring ticks need to differ.
    axisFormat: (value) => percent(value, Number.isInteger(+(100 * value).toFixed(6)) ? 0 : 1),
  };
  const losses = {
    bounds: [0, Infinity],
    format: (value) => fixed(value),
    axisFormat: (value) => String(+value.toPrecision(6)),
  };
  const charts = [
    lineChart({
      title: "Accuracy (top-1)",
      epochs,
      kept,
      lines: [
        line("training", (record) => record.train.top1),
        line("validation", (record) => record.val.top1),
        line("validation, text logits", (record) => record.val.text_top1),
        line("plain CLIP, " + splitName(plain.split), () => plain.top1),
      ],
      ...percentages,
    }),
    lineChart({
      title: "Loss",
      epochs,
      kept,
      lines: [
        line("training", (record) => record.train.loss),
        line("validation", (record) => record.val.loss),
      ],
      ...losses,
    }),
  ];
  if (data.parts.length > 1) {
    const lines = data.parts.map((part) => line(part, (record) => record.train["loss_" + part]));
    charts.push(lineChart({ title: "Parts of the training loss", epochs, kept, lines, ...losses }));
  }
  const note =
    "Point at a chart, touch it, or use the arrow keys in it for the values of an epoch. " +
    "The parts of a loss are shown before they are weighted.";
  return section("Curves", note, element("div", { class: "columns" }, ...charts));
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
    plain: data.zero_shot[i].recall,
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
    "taken for " + data.class_names[picture.predicted],
    percent(picture.confidence, 1),
  ];
  return section("Most confident mistakes", note, thumbnails(pictures, captions));
}

function runPage(data) {
  const split = splitName(data.split);
  return [
    element("h1", {}, data.name),
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
      "Bars: how often the head is right at a confidence. Dots and the dotted line: where it is as sure as it is " +
        "right. ECE " +
        percent(data.ece) +
        ".",
      calibrationChart({ title: "Accuracy by confidence", bins: data.calibration }),
    ),
    confidentMistakes(data),
    runSettings(data),
  ];
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const parts = data.kind === "run" ? runPage(data) : comparisonPage(data);
  document.title = data.kind === "run" ? data.name + " \u2013 clip-engine" : "Comparison \u2013 clip-engine";
  document.getElementById("page").replaceChildren(...parts.filter((part) => part !== null));
  drawCharts();
  new ResizeObserver(drawCharts).observe(document.getElementById("page"));
}

start();
