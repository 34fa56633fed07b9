"use strict";

// Tables: a click on a heading sorts by that column, a second click turns it round.
function sortBy(heading) {
  const body = heading.closest("table").tBodies[0];
  const falling = heading.ariaSort === "ascending";
  const key = (row) => row.cells[heading.cellIndex].dataset.value ?? row.cells[heading.cellIndex].textContent;
  const compare = (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
  const numbers = (a, b) => key(a) - key(b);
  const rows = [...body.rows];
  rows.sort(rows.some((row) => Number.isNaN(Number(key(row)))) ? compare : numbers);
  for (const other of heading.parentNode.cells) other.ariaSort = null;
  heading.ariaSort = falling ? "descending" : "ascending";
  body.append(...(falling ? rows.reverse() : rows));
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

// What is folded would be missing on paper.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details.printed")) folded.open = true;
});
