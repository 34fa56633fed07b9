// Transcripts: those that pass every filter, in the colours that are chosen.
const section = document.querySelector("#transcripts");
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
