"use strict";

// A click on a heading sorts by its column, a second click turns it round; what has no figure stays last.
function sortTable(heading) {
  const table = heading.closest("table"), body = table.tBodies[0];
  const column = [...heading.parentNode.children].indexOf(heading);
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const rows = [...body.rows].map((row) => {
    const cell = row.cells[column];
    const figure = Number(cell.dataset.sort ?? NaN);
    return { row, figure, text: cell.innerText, empty: "sort" in cell.dataset ? Number.isNaN(figure) : cell.innerText === "–" };
  });
  rows.sort((a, b) =>
    a.empty - b.empty
    || direction * (Number.isNaN(a.figure) || Number.isNaN(b.figure) ? a.text.localeCompare(b.text) : a.figure - b.figure));
  body.append(...rows.map(({ row }) => row));
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sortTable(button.closest("th")));
}

// Paper cannot be unfolded.
const folded = new Set();
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) { folded.add(part); part.open = true; }
});
addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
  folded.clear();
});
