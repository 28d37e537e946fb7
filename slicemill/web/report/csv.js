// @ts-check
/** Tables as CSV, with the guards of slicemill/common/csv_cells.py against formulas of spreadsheets. */

const FORMULA = /^'*[=+\-@\t\r]/;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** @param {string} text */
const isFormula = (text) => FORMULA.test(text) && !NUMBER.test(text.replace(/^'+/, ""));

/** @param {string | number | null} value */
function formatCell(value) {
  if (value === null) return "";
  if (typeof value === "number") return String(value);
  const guarded = isFormula(value) ? `'${value}` : value;
  return /[",\r\n]/.test(guarded) ? `"${guarded.replace(/"/g, '""')}"` : guarded;
}

/** Return rows of cells as CSV. @param {(string | number | null)[][]} rows */
export const toCsv = (rows) => rows.map((row) => `${row.map(formatCell).join(",")}\r\n`).join("");

/** Return the rows of a CSV that `toCsv` wrote, without guards. @param {string} text @returns {string[][]} */
export function fromCsv(text) {
  /** @type {string[][]} */
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/g)) {
    const cell = quoted === undefined ? (plain ?? "") : quoted.replace(/""/g, '"');
    const row = rows[rows.length - 1];
    row.push(isFormula(cell) && cell.startsWith("'") ? cell.slice(1) : cell);
    if (end !== ",") rows.push([]);
  }
  return rows.filter((row) => row.some((cell) => cell));
}
