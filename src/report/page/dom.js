"use strict";

// Elements, and numbers in words. Text only ever goes in as text nodes and attributes.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}

const element = (name, attributes = {}, ...children) =>
  build(document.createElement(name), attributes, children);

const shape = (name, attributes = {}, ...children) =>
  build(document.createElementNS(SVG, name), attributes, children);

const section = (title, note, ...content) =>
  element(
    "section",
    {},
    element("h2", {}, title),
    note ? element("p", { class: "note" }, note) : null,
    ...content,
  );

const NONE = "\u2013";

const percent = (value, digits = 1) => (value === null ? NONE : (100 * value).toFixed(digits) + " %");

const points = (value, digits = 1) =>
  (value < 0 ? "\u2212" : "+") + Math.abs(100 * value).toFixed(digits) + " points";

/** A 95 % interval of a share. */
const interval = ([low, high]) => (100 * low).toFixed(1) + "\u2013" + percent(high);

/** A share with its 95 % interval, where that is known, below it. */
const withInterval = (text, bounds) =>
  bounds ? [text, element("small", { class: "interval" }, interval(bounds))] : [text];

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]|[\ud802\ud803\ud83a\ud83b][\udc00-\udfff]/;

/** A name inside a text: one that is read from the right stays by itself. */
const named = (name) => (RIGHT_TO_LEFT.test(name) ? "\u2068" + name + "\u2069" : name);

const fixed = (value, digits = 4) => (value === null ? NONE : value.toFixed(digits));

const whole = (value) => value.toLocaleString("en");

const plural = (count, one, many = one + "s") => whole(count) + " " + (count === 1 ? one : many);

function duration(seconds) {
  if (seconds < 60) return seconds.toFixed(1) + " s";
  if (seconds < 600) return Math.floor(seconds / 60) + " min " + Math.floor(seconds % 60) + " s";
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return minutes + " min";
  return Math.floor(minutes / 60) + " h " + (minutes % 60) + " min";
}

/** Cards of a term, its value and a remark. */
function facts(list) {
  const card = ([term, value, remark]) =>
    element(
      "div",
      {},
      element("dt", {}, term),
      element("dd", {}, value, remark ? element("small", {}, remark) : null),
    );
  return element("dl", { class: "facts" }, ...list.map(card));
}

/** Thumbnails with captions; `captions` gives the lines above an image's path. */
function thumbnails(pictures, captions) {
  const item = (picture) => {
    const lines = captions(picture).map((line) => element("div", {}, line));
    const image = picture.source
      ? element("img", { src: picture.source, alt: captions(picture).join(", "), width: 80, height: 80 })
      : null;
    const path = element("span", { class: "path" }, picture.path);
    return element("li", {}, element("figure", {}, image, element("figcaption", {}, ...lines, path)));
  };
  return element("ul", { class: "thumbnails" }, ...pictures.map(item));
}

const rootNote = (data) => (data.root ? " Paths are those in " + data.root : "");
