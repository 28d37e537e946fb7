// @ts-check
/** The place where files are dropped or chosen: files, or folders with all that is in them. */

import { byId } from "./dom.js";

/** @typedef {{file: File, name: string}} Named */

/** Connect dropping and choosing. @param {(files: Named[]) => void} onFiles @param {(text: string) => void} onError */
export function connectDrop(onFiles, onError) {
  const [files, folder] = [byId("files", HTMLInputElement), byId("folder", HTMLInputElement)];
  byId("choose-files", HTMLButtonElement).addEventListener("click", () => files.click());
  byId("choose-folder", HTMLButtonElement).addEventListener("click", () => folder.click());
  for (const input of [files, folder]) {
    input.addEventListener("change", () => {
      onFiles([...(input.files ?? [])].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
      input.value = "";
    });
  }
  const place = byId("drop", HTMLElement);
  const start = byId("start", HTMLElement);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("is-over");
  });
  document.addEventListener("dragleave", () => place.classList.remove("is-over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("is-over");
    if (start.hidden || !event.dataTransfer) return;
    listDropped(event.dataTransfer).then(onFiles, () => onError("What was dropped cannot be read."));
  });
}

/** Return the files of a drop, those in folders too. @param {DataTransfer} data @returns {Promise<Named[]>} */
async function listDropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry());
  if (entries.some((entry) => entry?.isDirectory)) {
    return (await Promise.all(entries.map((entry) => (entry ? listEntry(entry) : [])))).flat();
  }
  return [...data.files].map((file) => ({ file, name: file.name }));
}

/** @param {FileSystemEntry} entry @returns {Promise<Named[]>} */
async function listEntry(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, fail) => /** @type {FileSystemFileEntry} */ (entry).file(done, fail));
    return [{ file: /** @type {File} */ (file), name: entry.fullPath.slice(1) }];
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  const found = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((done, fail) => reader.readEntries(done, fail)); // at most 100 at a time
    if (!some.length) break;
    for (const one of some) found.push(...(await listEntry(one)));
  }
  return found;
}
