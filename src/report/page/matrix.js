// The confusion matrix: rows are what an image is, columns what it is taken for.

const INTERESTING = 8;

/** What a cell says of itself. */
function cellText(data, label, predicted, count) {
  const of = " of " + plural(data.classes[label].images, "image");
  const name = named(data.class_names[label]);
  if (label === predicted) return name + ": " + count + of + " right";
  return name + " taken for " + named(data.class_names[predicted]) + ": " + count + of;
}

/** The images of a cell, with how many are shown of how many. */
function cellImages(data, cell, text) {
  if (!cell) return [element("h3", {}, text)];
  const shown =
    cell.images.length < cell.count ? " (" + cell.images.length + " of " + cell.count + " shown)" : "";
  const pictures = cell.images.map((place) => data.images[place]);
  return [
    element("h3", {}, text + shown),
    thumbnails(pictures, (picture) => [percent(picture.confidence, 1)]),
  ];
}

/** Calls `show(label, predicted)` and `open()` as the pointer, a touch or a key asks for. */
function exploreMatrix(svg, field, classes, at, show, open) {
  const point = (event) => {
    const box = field.getBoundingClientRect();
    const place = (length, side) => Math.floor((length / side) * classes);
    show(place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width));
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("click", (event) => {
    point(event);
    open();
  });
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  svg.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move && event.key !== "Enter") return;
    event.preventDefault();
    if (!move) return open();
    show(at.label + move[0], at.predicted + move[1]).scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

/** Buttons for the cells with the most mistakes. */
function frequentConfusions(data, go) {
  const mistakes = data.cells.filter((cell) => cell.label !== cell.predicted);
  const frequent = mistakes.sort((a, b) => b.count - a.count).slice(0, INTERESTING);
  const shortcut = (cell) => {
    const names = named(data.class_names[cell.label]) + " \u2192 " + named(data.class_names[cell.predicted]);
    return element(
      "li",
      {},
      element("button", { type: "button", onclick: () => go(cell) }, names + ": " + cell.count),
    );
  };
  const list = element("ul", { class: "confusions" }, ...frequent.map(shortcut));
  return {
    first: frequent[0],
    parts: frequent.length ? [element("h3", {}, "Most frequent confusions"), list] : [],
  };
}

function confusionMatrix(data) {
  const classes = data.class_names.length;
  const cells = new Map(data.cells.map((cell) => [cell.label * classes + cell.predicted, cell]));
  const help = "Confusion matrix. Arrow keys go from cell to cell, Enter opens a cell's images.";
  const svg = build(drawn(data.charts.confusion.svg), { role: "application", "aria-label": help, tabindex: 0 }, []);
  // Letters stay large enough to be read, and the whole on a screen.
  const width = svg.viewBox.baseVal.width;
  build(svg, { style: "min-width: " + 0.8 * width + "px; max-width: " + 1.5 * width + "px" }, []);
  const field = svg.querySelector(".field");
  const [left, top, side] = ["x", "y", "width"].map((name) => Number(field.getAttribute(name)));
  const cursor = shape("rect", { class: "cursor", width: side / classes, height: side / classes });
  svg.append(cursor);
  const readout = element("output", { class: "readout tall" });
  const panel = element("div", { id: "cell-images", "aria-live": "polite" });
  const names = data.class_names.map((name) => element("li", {}, element("bdi", {}, name)));

  const frequent = frequentConfusions(data, (cell) => {
    show(cell.label, cell.predicted);
    open();
  });
  const { label, predicted } = frequent.first || { label: 0, predicted: 0 };
  const at = { label, predicted };
  const here = () => cells.get(at.label * classes + at.predicted);
  const text = () => cellText(data, at.label, at.predicted, here() ? here().count : 0);
  const show = (label, predicted) => {
    at.label = Math.min(Math.max(label, 0), classes - 1);
    at.predicted = Math.min(Math.max(predicted, 0), classes - 1);
    readout.textContent = text();
    cursor.setAttribute("x", left + (at.predicted * side) / classes);
    cursor.setAttribute("y", top + (at.label * side) / classes);
    return cursor;
  };
  const fill = () => panel.replaceChildren(...cellImages(data, here(), text()));
  const open = () => {
    fill();
    panel.scrollIntoView({ block: "nearest" });
  };
  exploreMatrix(svg, field, classes, at, show, open);
  show(label, predicted);
  fill();
  const box = element("div", { class: "scroll matrix" }, svg);
  // The table of classes has the numbers too.
  const key = classes > 20 ? null : element("ol", { class: "key" }, ...names);
  const sides = element("div", { class: "columns" }, box, key || "");
  return [...frequent.parts, element("h3", {}, data.charts.confusion.title), readout, key ? sides : box, panel];
}
