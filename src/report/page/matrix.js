// The confusion matrix: rows are what an image is, columns what it is taken for.

const INTERESTING = 8;

/** Where everything is, for a box of `room` pixels. Names of rows stand beside few classes only. */
function matrixLayout(names, room) {
  const classes = names.length;
  const few = classes <= 20;
  const [smallest, largest] = few ? [24, 40] : [6, 20];
  const least = few ? Math.min(190, Math.max(110, Math.floor(room * 0.3))) : 30;
  const cell = Math.min(largest, Math.max(smallest, Math.floor((room - least - 8) / classes)));
  const longest = Math.max(...names.map((name) => textWidth("00 " + name))) + 12;
  const place = Math.round(Math.max(least, room - 8 - classes * cell));
  // Names are whole or stand in a list below.
  const named = few && longest <= place;
  const left = named ? longest : 30;
  return { few, named, left, top: 20, cell, width: left + classes * cell + 1, height: 20 + classes * cell + 1 };
}

function matrixLabels(svg, names, layout) {
  const { few, named: whole, left, top, cell } = layout;
  names.forEach((name, i) => {
    const middle = (i + 0.5) * cell + 4;
    if (!few && i > 0 && (i + 1) % 10 !== 0) return;
    const number = String(i + 1);
    svg.append(
      shape(
        "text",
        { x: left - 5, y: top + middle, "text-anchor": "end" },
        whole ? number + " " + named(name) : number,
      ),
      shape("text", { x: left + (i + 0.5) * cell, y: 14, "text-anchor": "middle" }, number),
    );
  });
}

function matrixCells(svg, data, layout) {
  const { few, left, top, cell } = layout;
  const side = data.class_names.length * cell;
  svg.append(shape("rect", { class: "field", x: left, y: top, width: side, height: side }));
  const every = few ? 1 : 10;
  for (let i = 0; i <= data.class_names.length; i += every) {
    const at = i * cell + 0.5;
    svg.append(
      shape("line", { class: "grid", x1: left, x2: left + side, y1: top + at, y2: top + at }),
      shape("line", { class: "grid", x1: left + at, x2: left + at, y1: top, y2: top + side }),
    );
  }
  for (const { label, predicted, count } of data.cells) {
    const x = left + predicted * cell;
    const y = top + label * cell;
    // Single mistakes must still be seen, counts must still be read.
    const strength = Math.sqrt(count / data.classes[label].images);
    const [faint, full] = few ? [0.2, 0.65] : [0.4, 1];
    svg.append(
      shape("rect", {
        class: label === predicted ? "right" : "wrong",
        x: x + 0.5,
        y: y + 0.5,
        width: cell,
        height: cell,
        "fill-opacity": (faint + (full - faint) * strength).toFixed(2),
      }),
    );
    if (few) svg.append(shape("text", { class: "count", x: x + cell / 2, y: y + cell / 2 + 4 }, count));
  }
}

/** The colours of the cells: what is right in one hue and outlined, mistakes in another. */
function matrixLegend(few) {
  const [faint, full] = few ? [0.2, 0.65] : [0.4, 1];
  const entry = (name, text) => {
    const cells = [0, 0.5, 1].map((strength, i) =>
      shape("rect", {
        class: name,
        x: 1 + 16 * i,
        y: 1,
        width: 14,
        height: 12,
        "fill-opacity": (faint + (full - faint) * strength).toFixed(2),
      }),
    );
    const sample = shape("svg", { viewBox: "0 0 48 14", "aria-hidden": "true" }, ...cells);
    return element("li", {}, sample, text);
  };
  return element(
    "ul",
    { class: "legend of-matrix" },
    entry("right", "right (the diagonal), few to all images of a class"),
    entry("wrong", "mistakes, few to all images of a class"),
  );
}

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
function exploreMatrix(matrix, show, open) {
  const { svg, at } = matrix;
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const { left, top, cell, width } = matrix.layout;
    const scale = width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale - left) / cell);
    show(Math.floor(((event.clientY - box.top) * scale - top) / cell), column);
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
    show(at.label + move[0], at.predicted + move[1]);
    matrix.cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
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
  const svg = shape("svg", { role: "application", "aria-label": help, tabindex: 0 });
  const readout = element("output", { class: "readout tall" });
  const panel = element("div", { id: "cell-images", "aria-live": "polite" });
  const at = { label: 0, predicted: 0 };
  const matrix = { svg, at, width: 0, layout: null, cursor: null };
  const key = element("ol", { class: "key" }, ...data.class_names.map((name) => element("li", {}, element("bdi", {}, name))));

  const here = () => cells.get(at.label * classes + at.predicted);
  const text = () => cellText(data, at.label, at.predicted, here() ? here().count : 0);
  const show = (label, predicted) => {
    at.label = Math.min(Math.max(label, 0), classes - 1);
    at.predicted = Math.min(Math.max(predicted, 0), classes - 1);
    readout.textContent = text();
    const { left, top, cell } = matrix.layout;
    matrix.cursor.setAttribute("x", left + at.predicted * cell + 0.5);
    matrix.cursor.setAttribute("y", top + at.label * cell + 0.5);
  };
  const fill = () => panel.replaceChildren(...cellImages(data, here(), text()));
  const open = () => {
    fill();
    panel.scrollIntoView({ block: "nearest" });
  };
  matrix.draw = () => {
    const room = Math.floor(svg.parentNode.clientWidth) - 10;
    if (room === matrix.width) return;
    matrix.width = room;
    const layout = (matrix.layout = matrixLayout(data.class_names, room));
    svg.replaceChildren();
    svg.setAttribute("width", layout.width);
    svg.setAttribute("height", layout.height);
    setSize(svg, layout.width, layout.height);
    matrixCells(svg, data, layout);
    matrixLabels(svg, data.class_names, layout);
    key.hidden = !layout.few || layout.named;
    matrix.cursor = shape("rect", { class: "cursor", width: layout.cell, height: layout.cell });
    svg.append(matrix.cursor);
    show(at.label, at.predicted);
  };
  exploreMatrix(matrix, show, open);
  charts.push(matrix);
  const frequent = frequentConfusions(data, (cell) => {
    show(cell.label, cell.predicted);
    open();
  });
  if (frequent.first) Object.assign(at, { label: frequent.first.label, predicted: frequent.first.predicted });
  fill();
  const box = element("div", { class: "scroll matrix" }, svg);
  const colours = matrixLegend(classes <= 20);
  return [...frequent.parts, element("h3", {}, "All classes"), readout, colours, box, key, panel];
}
