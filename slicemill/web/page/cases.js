// @ts-check
/** The cases to flip through, and their marks. */

import { putMark } from "./api.js";
import { byId, clean, makeButton, makeOption } from "./dom.js";

const KEYS = /** @type {Record<string, string>} */ ({ good: "g", bad: "b", unsure: "u" });

export class Cases {
  /** @param {import("./api.js").CaseList} list @param {(number: number) => void} onOpen
   * @param {(text: string) => void} onError */
  constructor(list, onOpen, onError) {
    this.list = list;
    this.number = 0;
    this.onOpen = onOpen;
    this.onError = onError;
    this.choice = byId("case-choice", HTMLSelectElement);
    this.choice.addEventListener("change", () => this.open(Number(this.choice.value)));
    byId("previous-case", HTMLButtonElement).addEventListener("click", () => this.open(this.number - 1));
    byId("next-case", HTMLButtonElement).addEventListener("click", () => this.open(this.number + 1));
    byId("case-controls", HTMLElement).hidden = list.cases.length < 2 && !list.marks.length;
    /** @type {Map<string, HTMLButtonElement>} */
    this.buttons = new Map();
    for (const mark of list.marks) {
      const button = makeButton(mark, `Mark this case as ${mark} and open the next (${KEYS[mark]})`, () =>
        this.mark(mark),
      );
      this.buttons.set(mark, button);
      byId("mark-buttons", HTMLElement).append(button);
    }
  }

  /** Return a case in words. @param {number} number */
  describe(number) {
    const { name, dice, mark } = this.list.cases[number];
    const score = this.list.dice_of === null ? "" : dice === null ? ", no Dice" : `, Dice ${dice.toFixed(3)}`;
    return `${number + 1}. ${clean(name)}${score}${mark ? ` [${mark}]` : ""}`;
  }

  /** @param {number} number */
  open(number) {
    if (number < 0 || number >= this.list.cases.length) return;
    this.number = number;
    this.show();
    this.onOpen(number);
  }

  show() {
    this.choice.replaceChildren(
      ...this.list.cases.map((_, number) => makeOption(String(number), this.describe(number))),
    );
    this.choice.value = String(this.number);
    byId("previous-case", HTMLButtonElement).disabled = this.number === 0;
    byId("next-case", HTMLButtonElement).disabled = this.number === this.list.cases.length - 1;
    const { mark } = this.list.cases[this.number];
    for (const [name, button] of this.buttons) button.setAttribute("aria-pressed", String(name === mark));
    const marked = this.list.cases.filter((one) => one.mark).length;
    byId("mark-count", HTMLElement).textContent = this.buttons.size
      ? `${marked} of ${this.list.cases.length} marked`
      : "";
  }

  /** Set a mark and open the next case; the same mark again removes it. @param {string} mark */
  async mark(mark) {
    if (!this.buttons.has(mark)) return;
    const number = this.number;
    const entry = this.list.cases[number];
    const wanted = entry.mark === mark ? null : mark;
    try {
      await putMark(number, wanted);
    } catch (error) {
      this.onError(error instanceof Error ? error.message : String(error));
      return;
    }
    entry.mark = wanted;
    this.show();
    if (wanted && number === this.number) this.open(number + 1);
  }
}
