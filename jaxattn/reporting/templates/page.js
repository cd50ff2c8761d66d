"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const read = (row) => {
        const cell = row.cells[column];
        const number = cell.dataset.number;
        return number === undefined ? cell.textContent : Number(number.replace("inf", "Infinity"));
      };
      const compare = (a, b) => {
        const [x, y] = [read(a), read(b)];
        const missing = Number(Number.isNaN(x)) - Number(Number.isNaN(y));
        if (missing) return missing;
        const order = typeof x === "number" && typeof y === "number"
          ? (x === y ? 0 : x < y ? -1 : 1) : String(x).localeCompare(String(y));
        return down ? -order : order;
      };
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
for (const radio of document.querySelectorAll("input[name=class]")) {
  radio.addEventListener("change", () => {
    for (const panel of document.querySelectorAll("[data-class]")) {
      panel.hidden = radio.value === "predicted"
        ? !("predicted" in panel.dataset) : panel.dataset.class !== radio.value;
    }
  });
}
const signs = document.getElementById("signs");
signs.addEventListener("change", () => document.body.classList.toggle("marked", signs.checked));
