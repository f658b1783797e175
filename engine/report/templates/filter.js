"use strict";
const box = document.getElementById("filter");
const shown = document.getElementById("shown");
const rows = [...document.querySelectorAll("#traits tbody tr")];
const others = [...document.querySelectorAll("#transfer tbody tr")];

function choose() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of [...rows, ...others]) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}

box.addEventListener("input", choose);
choose();
