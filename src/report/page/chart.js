// The charts as the engine drew them, explored with the pointer, by touch and with the arrow keys: an unseen shape in
// them, a spot, has a text, which is shown beside it.

const drawn = (svg) => document.importNode(new DOMParser().parseFromString(svg, "image/svg+xml").documentElement, true);

/** A figure with a chart; `above` stands between its title and the chart, `dots` are spots that are put into it. */
function figure({ title, svg }, above = [], dots = []) {
  const drawing = drawn(svg);
  drawing.append(...dots);
  const tip = element("output", { class: "tip", hidden: "" });
  explore(drawing, tip);
  return element("figure", { class: "chart" }, element("figcaption", {}, title), ...above, drawing, tip);
}

function explore(drawing, tip) {
  const spots = [...drawing.querySelectorAll(".spot")];
  if (spots.length === 0) return;
  for (const spot of spots) {
    const title = spot.querySelector("title");
    if (title) spot.setAttribute("aria-label", title.textContent);
    // The browser would show it a second time.
    if (title) title.remove();
    spot.setAttribute("role", "img");
    spot.setAttribute("tabindex", -1);
  }
  let at = spots.find((spot) => spot.classList.contains("first")) || spots[0];
  at.setAttribute("tabindex", 0);
  const hide = () => {
    at.classList.remove("on");
    tip.hidden = true;
  };
  const show = (spot) => {
    hide();
    at.setAttribute("tabindex", -1);
    at = spot;
    at.setAttribute("tabindex", 0);
    at.classList.add("on");
    tip.textContent = at.getAttribute("aria-label");
    tip.hidden = false;
    place(tip, at.getBoundingClientRect(), tip.parentNode.getBoundingClientRect());
  };
  const far = (spot, x, y) => {
    const box = spot.getBoundingClientRect();
    return Math.hypot(Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
  };
  const point = ({ clientX: x, clientY: y }) =>
    show(spots.reduce((best, spot) => (far(spot, x, y) < far(best, x, y) ? spot : best)));
  drawing.addEventListener("pointermove", point);
  drawing.addEventListener("pointerdown", point);
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("focusin", (event) => show(event.target));
  drawing.addEventListener("focusout", hide);
  drawing.addEventListener("keydown", (event) => {
    const [here, last] = [spots.indexOf(at), spots.length - 1];
    const [back, on] = [Math.max(here - 1, 0), Math.min(here + 1, last)];
    const to = { ArrowLeft: back, ArrowUp: back, ArrowRight: on, ArrowDown: on, Home: 0, End: last }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    spots[to].focus();
    show(spots[to]);
  });
}

/** Puts `tip` to the right of a spot, or where that has no room to its left, or below it, within its figure. */
function place(tip, spot, figure) {
  const [width, right] = [tip.offsetWidth, spot.right - figure.left + 6];
  const left = spot.left - figure.left - 6 - width;
  const beside = right + width <= figure.width ? right : left >= 0 ? left : null;
  tip.style.left = (beside === null ? Math.max(0, (figure.width - width) / 2) : beside) + "px";
  tip.style.top = (beside === null ? spot.bottom + 4 : spot.top) - figure.top + "px";
}

/** The first few of a list of names. */
function listed(names) {
  const [few, more] = [names.slice(0, 4).map(named), names.length - 4];
  return few.join(", ") + (more > 0 ? " and " + more + " more" : "");
}

/** Points in the unit square of `chart`. `dots`: x, y and the names that fall together there. */
function scatterChart(chart, axes, dots) {
  const field = drawn(chart.svg).querySelector(".field");
  const [left, top, side] = ["x", "y", "width"].map((name) => Number(field.getAttribute(name)));
  const circle = (dot) =>
    shape("circle", {
      class: "spot dot",
      cx: left + dot.x * side,
      cy: top + (1 - dot.y) * side,
      r: 3 + 1.5 * Math.sqrt(dot.names.length),
      "aria-label": listed(dot.names) + "\n" + axes[0] + ": " + percent(dot.x) + "\n" + axes[1] + ": " + percent(dot.y),
    });
  const note = element("p", { class: "axes" }, "\u2192 ", element("bdi", {}, axes[0]), element("br"), "\u2191 ", element("bdi", {}, axes[1]));
  return figure(chart, [note], dots.map(circle));
}
