// Charts: SVG as wide as the place they stand in, drawn again when that changes. Each can be explored with
// the pointer, by touch and with the arrow keys; a text beside it says what is under the cursor.

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3"];
const charts = [];

const seriesColour = (index) => "var(--series-" + (index % 8) + ")";

/** Round values between `low` and `high`, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
  return values;
}

/**
 * A figure with a chart. `draw(svg, width)` fills the empty svg and returns what makes it explorable:
 * `count` places, `nearest(x, y)`, and `show(place)`. `start` is the first place.
 */
function figure(title, help, above, draw, start) {
  const label = title + ". " + help;
  const svg = shape("svg", { role: "application", "aria-label": label, tabindex: 0 });
  const chart = { svg, width: 0, place: start, parts: null };
  const show = (place) => {
    chart.place = Math.min(Math.max(place, 0), chart.parts.count - 1);
    if (chart.parts.count > 0) chart.parts.show(chart.place);
  };
  chart.draw = () => {
    const width = Math.max(240, Math.floor(svg.parentNode.clientWidth));
    if (width === chart.width) return;
    chart.width = width;
    svg.replaceChildren();
    chart.parts = draw(svg, width);
    show(chart.place);
  };
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = chart.width / box.width;
    show(chart.parts.nearest((event.clientX - box.left) * scale, (event.clientY - box.top) * scale));
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("keydown", (event) => {
    const last = chart.parts.count - 1;
    const to = {
      ArrowLeft: chart.place - 1,
      ArrowDown: chart.place - 1,
      ArrowRight: chart.place + 1,
      ArrowUp: chart.place + 1,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
  charts.push(chart);
  return element("figure", { class: "chart" }, element("figcaption", {}, title), ...above, svg);
}

function drawCharts() {
  for (const chart of charts) if (chart.svg.isConnected) chart.draw();
}

function setSize(svg, width, height) {
  svg.setAttribute("viewBox", "0 0 " + width + " " + height);
}

/** Grid, labels and the scale of a vertical axis. */
function verticalAxis(svg, frame, low, high, format) {
  const y = (value) => frame.bottom - ((value - low) / (high - low)) * (frame.bottom - frame.top);
  for (const value of ticks(low, high, 5)) {
    svg.append(
      shape("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y(value), y2: y(value) }),
      shape("text", { x: frame.left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)),
    );
  }
  return y;
}

function horizontalAxis(svg, frame, low, high, values, format) {
  const span = high - low || 1;
  const middle = high === low ? 0.5 : 0;
  const x = (value) => frame.left + ((value - low) / span + middle) * (frame.right - frame.left);
  svg.append(
    shape("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }),
  );
  for (const value of values) {
    svg.append(shape("text", { x: x(value), y: frame.bottom + 16, "text-anchor": "middle" }, format(value)));
  }
  return x;
}

/** Lines that run beside a later one, so that this hides them: how many of those there are for each. */
function hiddenBy(lines, low, high) {
  const near = (a, b) => Math.abs(a - b) < 0.008 * (high - low);
  const together = (a, b) => a.values.filter((value, i) => value !== null && b.values[i] !== null && near(value, b.values[i]));
  return lines.map(
    (line, i) => lines.slice(i + 1).filter((later) => 3 * together(line, later).length >= line.values.length).length,
  );
}

/** The lines' range with some air, within `bounds`. */
function range(lines, bounds) {
  const values = lines
    .flatMap((line) => [line, ...(line.behind || [])])
    .flatMap((line) => line.values)
    .filter((value) => value !== null);
  let low = values.reduce((a, b) => Math.min(a, b), Infinity);
  let high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (low > high) [low, high] = [0, 1];
  const air = (high - low || Math.abs(high) || 1) * 0.06;
  return [Math.max(bounds[0], low - air), Math.min(bounds[1], high + air)];
}

/** What stands above a chart of lines: which line is which, and its value under the cursor. */
function legend(lines, format) {
  const place = element("b", {});
  const values = lines.map(() => element("b", {}));
  const entries = lines.map((line, i) => {
    const style = {
      class: "series",
      x1: 0,
      x2: 26,
      y1: 5,
      y2: 5,
      stroke: line.colour,
      "stroke-dasharray": line.dash,
      style: "stroke-width: " + line.width,
    };
    const sample = shape("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, shape("line", style));
    return element("li", {}, sample, line.name, values[i]);
  });
  const list = element(
    "ul",
    { class: "legend", "aria-live": "polite" },
    element("li", {}, place),
    ...entries,
  );
  const show = (name, index) => {
    place.textContent = name;
    lines.forEach((line, i) => (values[i].textContent = format(line.values[index])));
  };
  return { list, show };
}

/** The line through the values that there are, broken where there is none. */
function path(line, x, y) {
  let pen = "M";
  let text = "";
  line.values.forEach((value, i) => {
    if (value === null) pen = "M";
    else {
      text += pen + x(i).toFixed(1) + " " + y(value).toFixed(1);
      pen = "L";
    }
  });
  return text;
}

/**
 * Lines over epochs. `lines`: name, a value or null per epoch, and `behind`, lines that are drawn faintly behind
 * it; `kept`: the epoch that is marked.
 */
function lineChart({ title, epochs, lines, kept, bounds, format, axisFormat }) {
  const [low, high] = range(lines, bounds);
  // What would be hidden is wide enough to be seen on both sides of what is drawn over it.
  const hidden = hiddenBy(lines, low, high);
  lines = lines.map((line, i) => ({
    colour: seriesColour(i),
    dash: DASHES[i % 8],
    width: 2 + 3 * hidden[i],
    ...line,
  }));
  const above = legend(lines, format);
  const first = epochs[0];
  const last = epochs[epochs.length - 1];
  const draw = (svg, width) => {
    const labels = ticks(low, high, 5).map((value) => textWidth(axisFormat(value)));
    const frame = { left: Math.max(44, ...labels) + 10, right: width - 18, top: 14, bottom: 212 };
    setSize(svg, width, 250);
    const y = verticalAxis(svg, frame, low, high, axisFormat);
    const marks = ticks(first, last, width / 80).filter(Number.isInteger);
    const scale = horizontalAxis(svg, frame, first, last, marks, String);
    const x = (i) => scale(epochs[i]);
    svg.append(shape("text", { x: frame.right, y: 245, "text-anchor": "end" }, "epoch"));
    if (kept !== undefined) {
      const at = scale(kept);
      const anchor = at > width - 60 ? "end" : "start";
      svg.append(
        shape("line", { class: "kept", x1: at, x2: at, y1: frame.top, y2: frame.bottom }),
        shape("text", { x: at + (anchor === "end" ? -4 : 4), y: 11, "text-anchor": anchor }, "kept"),
      );
    }
    for (const line of lines) {
      for (const other of line.behind || []) {
        svg.append(shape("path", { class: "series faint", d: path(other, x, y), stroke: line.colour }));
      }
    }
    for (const line of lines) {
      svg.append(
        shape("path", {
          class: "series",
          d: path(line, x, y),
          stroke: line.colour,
          "stroke-dasharray": line.dash,
          style: "stroke-width: " + line.width,
        }),
      );
      if (epochs.length > 25 || line.plain) continue;
      line.values.forEach((value, i) => {
        if (value === null) return;
        svg.append(shape("circle", { cx: x(i), cy: y(value), r: line.width / 2 + 1, style: "fill: " + line.colour }));
      });
    }
    const cursor = shape("g", { class: "cursor" });
    svg.append(cursor);
    return {
      count: epochs.length,
      nearest: (at) =>
        epochs.reduce((best, _, i) => (Math.abs(x(i) - at) < Math.abs(x(best) - at) ? i : best), 0),
      show: (i) => {
        above.show("epoch " + epochs[i], i);
        const dots = lines
          .filter((line) => line.values[i] !== null)
          .map((line) =>
            shape("circle", { cx: x(i), cy: y(line.values[i]), r: 3.5, style: "fill: " + line.colour }),
          );
        cursor.replaceChildren(
          shape("line", { x1: x(i), x2: x(i), y1: frame.top, y2: frame.bottom }),
          ...dots,
        );
      },
    };
  };
  const start = kept === undefined ? epochs.length - 1 : Math.max(0, epochs.indexOf(kept));
  return figure(title, "Arrow keys go from epoch to epoch.", [above.list], draw, start);
}

/** A line from a deviation below the bar's value to one above, open where it reaches beyond 0 or 1. */
function deviation(bar, full, y) {
  const [low, high] = [bar.value - bar.std, bar.value + bar.std];
  const x = (value) => (6 + Math.min(Math.max(value, 0), 1) * full).toFixed(2);
  const stroke = (value) => (value >= 0 && value <= 1 ? "M" + x(value) + " " + (y - 4) + "v8" : "");
  const d = "M" + x(low) + " " + y + "H" + x(high) + stroke(low) + stroke(high);
  // On paper of its own: a light line would not be seen on a light bar.
  return [shape("path", { class: "deviation paper", d }), shape("path", { class: "deviation", d })];
}

/**
 * Horizontal bars from 0 to 1. `bars`: name, value and its label, text, and, or null, the value's deviation std
 * and a range beside the bar.
 */
function barChart({ title, bars }) {
  const readout = element("output", { class: "readout" });
  const draw = (svg, width) => {
    const labels = bars.map((bar) => textWidth(bar.label));
    const names = bars.map((bar, i) => lines(bar.name, width - 24 - labels[i]));
    // One height for all, so that the pointer finds the bar.
    const above = LINE * (Math.max(...names.map((name) => name.length)) - 1);
    const row = 46 + above;
    const full = width - 12;
    setSize(svg, width, bars.length * row + 4);
    const outline = shape("rect", { class: "cursor", x: 0.5, width: width - 1, height: row - 2, rx: 4 });
    bars.forEach((bar, i) => {
      const y = i * row + 4 + above;
      svg.append(
        textBlock({ class: "strong", x: 6, y: y + 12 - LINE * (names[i].length - 1) }, names[i]),
        shape("text", { class: "strong", x: width - 6, y: y + 12, "text-anchor": "end" }, bar.label),
        shape("rect", {
          x: 6,
          y: y + 17,
          width: bar.value * full,
          height: 13,
          rx: 2,
          style: "fill: " + seriesColour(bar.plain ? 7 : 0),
        }),
      );
      if (bar.std !== null) svg.append(...deviation(bar, full, y + 23.5));
      if (bar.range) {
        const [low, high] = bar.range.map((value) => 6 + value * full);
        const d = "M" + low + " " + (y + 33) + "v5H" + high + "v-5";
        svg.append(shape("path", { class: "series", d, stroke: seriesColour(1) }));
      }
    });
    svg.append(outline);
    return {
      count: bars.length,
      nearest: (_, y) => Math.floor(y / row),
      show: (i) => {
        readout.textContent = bars[i].text;
        outline.setAttribute("y", i * row + 0.5);
      },
    };
  };
  return figure(title, "Arrow keys go from bar to bar.", [readout], draw, 0);
}

/** A bin's accuracy as a bar, its mean confidence as a dot, and its images as a bar below. */
function calibrationBars(svg, bins, x, y) {
  const most = Math.max(1, ...bins.map((bin) => bin.images));
  const step = x(1 / bins.length) - x(0);
  bins.forEach((bin, i) => {
    const left = x(i / bins.length) + 1;
    const high = (bin.images / most) * 50;
    if (bin.images === 0) return;
    svg.append(
      shape("rect", {
        x: left,
        width: step - 2,
        y: y(bin.accuracy),
        height: y(0) - y(bin.accuracy),
        style: "fill: var(--series-0); fill-opacity: 0.55",
      }),
      shape("circle", {
        cx: x(bin.confidence),
        cy: y(bin.confidence),
        r: 3.5,
        style: "fill: var(--series-1)",
      }),
      shape("rect", {
        x: left,
        width: step - 2,
        y: 334 - high,
        height: Math.max(high, 1),
        style: "fill: var(--series-7)",
      }),
    );
  });
}

/** Accuracy over confidence, a bar per bin, with the number of images in each below. */
function calibrationChart({ title, bins }) {
  const readout = element("output", { class: "readout" });
  const share = (i) => percent(i / bins.length, 0);
  const draw = (svg, width) => {
    const right = Math.min(width - 20, 560);
    const frame = { left: 52, right, top: 10, bottom: 246 };
    setSize(svg, width, 340);
    const y = verticalAxis(svg, frame, 0, 1, (value) => percent(value, 0));
    const x = horizontalAxis(svg, frame, 0, 1, ticks(0, 1, 5), (value) => percent(value, 0));
    const step = x(1 / bins.length) - x(0);
    calibrationBars(svg, bins, x, y);
    svg.append(
      shape("line", { class: "even", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
      shape("text", { x: frame.left, y: 279 }, "images"),
      shape("text", { x: frame.right, y: 279, "text-anchor": "end" }, "confidence"),
      shape("line", { class: "axis", x1: frame.left, x2: frame.right, y1: 334.5, y2: 334.5 }),
    );
    const cursor = shape("rect", { class: "cursor", y: frame.top, height: 325, width: step });
    svg.append(cursor);
    return {
      count: bins.length,
      nearest: (at) => Math.floor((at - frame.left) / step),
      show: (i) => {
        const bin = bins[i];
        const result = bin.images
          ? ", accuracy " +
            percent(bin.accuracy, 1) +
            " at a mean confidence of " +
            percent(bin.confidence, 1)
          : "";
        readout.textContent =
          "Confidence " + share(i) + " to " + share(i + 1) + ": " + plural(bin.images, "image") + result;
        cursor.setAttribute("x", x(i / bins.length));
      },
    };
  };
  const filled = bins.findLastIndex((bin) => bin.images > 0);
  return figure(title, "Arrow keys go from bin to bin.", [readout], draw, Math.max(filled, 0));
}

/** The first few of a list of names. */
function listed(names) {
  const [few, more] = [names.slice(0, 4).map(named), names.length - 4];
  return few.join(", ") + (more > 0 ? " and " + more + " more" : "");
}

/** Points in the unit square. `dots`: x, y and the names that fall together there. */
function scatterChart({ title, axes, dots }) {
  const readout = element("output", { class: "readout tall" });
  const draw = (svg, width) => {
    const side = Math.min(width - 74, 420);
    const upper = lines("\u2191 " + axes[1], width - 8);
    const lower = lines(axes[0] + " \u2192", 48 + side);
    const top = 9 + LINE * upper.length;
    const frame = { left: 52, right: 52 + side, top, bottom: top + side };
    setSize(svg, width, top + side + 27 + LINE * lower.length);
    const y = verticalAxis(svg, frame, 0, 1, (value) => percent(value, 0));
    const x = horizontalAxis(svg, frame, 0, 1, ticks(0, 1, 5), (value) => percent(value, 0));
    svg.append(
      shape("line", { class: "even", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
      textBlock({ class: "strong", x: 4, y: 13 }, upper),
      textBlock({ class: "strong", x: frame.right, y: frame.bottom + 36, "text-anchor": "end" }, lower),
    );
    for (const dot of dots) {
      const radius = 3 + 1.5 * Math.sqrt(dot.names.length);
      svg.append(
        shape("circle", {
          cx: x(dot.x),
          cy: y(dot.y),
          r: radius,
          style: "fill: var(--series-0); fill-opacity: 0.6",
        }),
      );
    }
    const cursor = shape("circle", { class: "cursor", r: 9 });
    svg.append(cursor);
    const distance = (dot, px, py) => (x(dot.x) - px) ** 2 + (y(dot.y) - py) ** 2;
    return {
      count: dots.length,
      nearest: (px, py) =>
        dots.reduce((best, dot, i) => (distance(dot, px, py) < distance(dots[best], px, py) ? i : best), 0),
      show: (i) => {
        const dot = dots[i];
        readout.textContent =
          listed(dot.names) +
          ": " +
          axes[0] +
          " " +
          percent(dot.x, 1) +
          ", " +
          axes[1] +
          " " +
          percent(dot.y, 1);
        cursor.setAttribute("cx", x(dot.x));
        cursor.setAttribute("cy", y(dot.y));
      },
    };
  };
  return figure(title, "Arrow keys go from point to point.", [readout], draw, 0);
}
