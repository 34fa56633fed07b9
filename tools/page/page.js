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

// Transcripts (a run's report has them, the page of studies has none): those that pass every filter, in the colours
// that are chosen.
function filterTranscripts(section) {
  const transcripts = [...section.querySelectorAll("article")];
  const filters = [...section.querySelectorAll("select[data-filter]")];
  const colours = section.querySelector("select[data-colours]");
  function choose() {
    for (const transcript of transcripts) {
      transcript.hidden = filters.some((filter) => filter.value && transcript.dataset[filter.dataset.filter] !== filter.value);
    }
    const shown = transcripts.filter((transcript) => !transcript.hidden).length;
    section.querySelector("output").textContent = `${shown} of ${transcripts.length} shown`;
    section.dataset.colours = colours.value;
  }
  for (const select of [...filters, colours]) select.addEventListener("change", choose);
  choose(); // a browser may remember what was chosen before the page was loaded again
}
const transcripts = document.querySelector("#transcripts");
if (transcripts) filterTranscripts(transcripts);
