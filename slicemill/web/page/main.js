// @ts-check
/** The page: connects the panes, controls and tables with the case that is shown. */

import { getCases, startSession } from "./api.js";
import { Cases } from "./cases.js";
import { addSwitch, connectKeys, connectTheme, connectWindow, PRESETS } from "./controls.js";
import { byId, clean, makeButton } from "./dom.js";
import { PLANES } from "./geometry.js";
import { sliceAt } from "./heat.js";
import { Viewer } from "./viewer.js";

/** @param {string} text */
export function showMessage(text) {
  const message = byId("message", HTMLElement);
  message.textContent = text;
  message.hidden = !text;
}

/** @param {Viewer} viewer */
export function connectPicture(viewer) {
  const showWindow = connectWindow((window) => viewer.setWindow(window));
  const switches = /** @type {const} */ ([
    ["Outline", "o", "outline"],
    ["Fill", "f", "fill"],
    ["Masks", "m", "masks"],
    ["Crosshair", "x", "crosshair"],
    ["Measure", "d", "measuring"],
    ["All planes", "v", "allPlanes"],
  ]);
  const shown = switches.map(([text, key, name]) => addSwitch(text, key, name, () => viewer.flip(name)));
  const planes = PLANES.map((plane) => {
    const button = makeButton(plane[0].toUpperCase() + plane.slice(1), `Show the ${plane} picture`, () =>
      viewer.activate(plane),
    );
    byId("planes", HTMLElement).append(button);
    return button;
  });
  const solid = makeButton("3-D", "Show the 3-D picture (r)", () => viewer.activateSurface());
  byId("planes", HTMLElement).append(solid);
  viewer.onControls = () => {
    solid.hidden = viewer.surface.element.hidden;
    solid.setAttribute("aria-pressed", String(viewer.isSolid));
    showWindow(viewer.window);
    switches.forEach(([, , name], index) => shown[index](viewer.switches[name]));
    const large = viewer.isSolid ? null : viewer.plane;
    PLANES.forEach((plane, index) => planes[index].setAttribute("aria-pressed", String(plane === large)));
  };
  viewer.onControls();
  byId("reset", HTMLButtonElement).addEventListener("click", () => viewer.resetViews());
  const slider = byId("slice", HTMLInputElement);
  slider.addEventListener("input", () => viewer.goTo(slider.valueAsNumber - 1));
  const heat = byId("heat", HTMLCanvasElement);
  heat.addEventListener("click", (event) => {
    const box = heat.getBoundingClientRect();
    viewer.goToSlice(sliceAt((event.clientX - box.left) / box.width, viewer.sliceCount));
  });
  byId("parts-of", HTMLSelectElement).addEventListener("change", () => viewer.changeParts());
}

/** @param {Viewer} viewer @param {Cases | null} cases null where there is one case at a time
 * @returns {import("./controls.js").Key[]} */
export function listKeys(viewer, cases) {
  /** @param {string[]} keys @param {string} shown @param {string} text
   * @param {(event: KeyboardEvent) => void} action */
  const key = (keys, shown, text, action) => ({ keys, shown, text, action });
  const arrow = (/** @type {KeyboardEvent} */ event, /** @type {number} */ x, /** @type {number} */ y) =>
    event.shiftKey ? viewer.nudge(x, y) : viewer.scroll(viewer.plane, x - y);
  return [
    key(["ArrowUp", "ArrowRight"], "↑ →", "next slice, towards the head; with Shift, move the crosshair", (event) =>
      event.key === "ArrowUp" ? arrow(event, 0, -1) : arrow(event, 1, 0),
    ),
    key(["ArrowDown", "ArrowLeft"], "↓ ←", "previous slice; with Shift, move the crosshair", (event) =>
      event.key === "ArrowDown" ? arrow(event, 0, 1) : arrow(event, -1, 0),
    ),
    key(["PageUp"], "Page Up", "10 slices on", () => viewer.scroll(viewer.plane, 10)),
    key(["PageDown"], "Page Down", "10 slices back", () => viewer.scroll(viewer.plane, -10)),
    key(["Home"], "Home", "first slice", () => viewer.goTo(0)),
    key(["End"], "End", "last slice", () => viewer.goTo(Infinity)),
    key(["n"], "n", "next lesion or part", () => viewer.jump(1)),
    key(["p"], "p", "previous lesion or part", () => viewer.jump(-1)),
    key(["o"], "o", "outlines on or off", () => viewer.flip("outline")),
    key(["f"], "f", "fill on or off", () => viewer.flip("fill")),
    key(["m"], "m", "masks on or off", () => viewer.flip("masks")),
    key(["x"], "x", "crosshair on or off", () => viewer.flip("crosshair")),
    key(["d"], "d", "measure: drag, or Enter at both ends with the crosshair", () => viewer.flip("measuring")),
    key(["Enter"], "Enter", "an end of a length, while measuring", () => viewer.placeEnd()),
    key(["v"], "v", "all planes or one", () => viewer.flip("allPlanes")),
    ...PRESETS.map(([name, window], index) =>
      key([String(index + 1)], String(index + 1), `window: ${name}, ${window.low} to ${window.high} HU`, () =>
        viewer.setWindow(window),
      ),
    ),
    key(["+", "="], "+", "larger", () => viewer.zoom(viewer.plane, 1.25)),
    key(["-"], "-", "smaller", () => viewer.zoom(viewer.plane, 0.8)),
    key(["0"], "0", "whole picture", () => viewer.resetViews()),
    key(["a", "c", "s"], "a c s", "axial, coronal, sagittal picture", (event) =>
      viewer.activate(PLANES[["a", "c", "s"].indexOf(event.key)]),
    ),
    key(["r"], "r", "3-D picture; in it, arrows turn, + and - zoom", () => viewer.activateSurface()),
    ...(cases
      ? [
          key(["j"], "j", "next case", () => cases.open(cases.number + 1)),
          key(["k"], "k", "previous case", () => cases.open(cases.number - 1)),
        ]
      : []),
    ...(cases?.list.marks.length
      ? [
          key(
            ["g", "b", "u"],
            "g b u",
            "mark as good, bad, unsure, and open the next case",
            (event) =>
              void cases.mark(
                /** @type {Record<string, string>} */ ({ g: "good", b: "bad", u: "unsure" })[event.key],
              ),
          ),
        ]
      : []),
    key(["Escape"], "Esc", "end measuring, and remove the lengths", () => viewer.clearLengths()),
    key(["?"], "?", "this list", () => byId("help-dialog", HTMLDialogElement).showModal()),
  ];
}

async function start() {
  connectTheme();
  try {
    await startSession();
    const list = await getCases();
    const viewer = new Viewer(list.cases.length, showMessage);
    const cases = new Cases(
      list,
      (number) => {
        showMessage("");
        const name = clean(list.cases[number].name);
        byId("case-name", HTMLElement).textContent = name;
        document.title = `${name} - slicemill viewer`;
        void viewer.open(number);
      },
      showMessage,
    );
    byId("main", HTMLElement).hidden = false;
    connectPicture(viewer);
    connectKeys(listKeys(viewer, cases));
    cases.open(0);
  } catch (error) {
    showMessage(error instanceof Error ? error.message : String(error));
  }
}

if (!document.querySelector("#start")) void start(); // else serve.js does
