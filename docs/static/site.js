// A lesson's editions have the same code cells, in the same order: the switch leads to the cell that is being read.
const cells = () => [...document.querySelectorAll("div.cell")];
const firstVisible = () => Math.max(0, cells().findLastIndex((cell) => cell.getBoundingClientRect().top < innerHeight / 2));

document.addEventListener("DOMContentLoaded", () => {
  // What scrolls can be reached with the keyboard; the arrows of the sidebar have a name.
  document.querySelectorAll(".cell_output .output, .pst-scrollable-table-container").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  });
  document.querySelectorAll("summary").forEach((arrow) => {
    if (!arrow.textContent.trim()) arrow.ariaLabel = "Pages below";
  });
  const all = cells();
  all.forEach((cell, number) => { cell.id ||= `cell-${number}`; });
  const asked = location.hash.match(/^#cell-(\d+)$/);
  if (asked) all[asked[1]]?.scrollIntoView({ block: "center" });
  document.querySelectorAll(".editions a").forEach((link) => link.addEventListener("click", () => {
    if (scrollY > innerHeight / 2) link.hash = `cell-${firstVisible()}`;
  }));
});
