"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Sort: numbers as numbers, empty cells last
for (const table of all("table.sortable")) {
  const heads = all("th", table), body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending" && !(head.hasAttribute("aria-sort") === false && column === 0);
    const value = row => row.cells[column].textContent.trim();
    const numeric = [...body.rows].every(row => value(row) === "" || !isNaN(parseFloat(value(row))));
    const compare = (a, b) => value(a) === "" || value(b) === "" ? (value(a) === "") - (value(b) === "")
      : (numeric ? parseFloat(value(a)) - parseFloat(value(b)) : value(a).localeCompare(value(b))) * (down ? -1 : 1);
    body.append(...[...body.rows].sort(compare));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }));
}

// Filter: every word must occur in the row; NAME=VALUE must be one of its settings
const rows = all("tr[data-row]"), lines = new Map();
for (const name of all("[data-legend]")) lines.set(name.dataset.legend, [...(lines.get(name.dataset.legend) || []), name]);
for (const line of all("g[id^=train_loss-], g[id^=val_mAP-]")) {
  const row = line.id.split("-")[1];  // NAME-ROW, NAME-ROW-band
  lines.set(row, [...(lines.get(row) || []), line]);
}
const texts = new Map(rows.map(row => [row, [JSON.parse(row.dataset.tokens), row.textContent.toLowerCase() + row.title.toLowerCase()]]));
function filter() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const [tokens, text] = texts.get(row);
    const fits = words.every(word => word.includes("=") ? tokens.includes(word) : text.includes(word));
    row.classList.toggle("off", !fits);
    (lines.get(row.dataset.row) || []).forEach(line => line.classList.toggle("off", !fits));
    shown += fits;
  }
  document.getElementById("count").textContent = `${shown} of ${rows.length}`;
}
document.getElementById("filter").addEventListener("input", filter);
filter();

// Point at a row: its lines stand out
for (const row of rows) {
  const mark = on => lines.forEach((group, number) => group.forEach(line => line.classList.toggle("dimmed", on && number !== row.dataset.row)));
  row.addEventListener("mouseenter", () => mark(true));
  row.addEventListener("mouseleave", () => mark(false));
}

// Menus choose one of several drawings
for (const menu of all("select[data-menu]")) {
  const choices = all(`[data-choice="${menu.dataset.menu}"]`);
  menu.addEventListener("change", () => choices.forEach((choice, number) => choice.hidden = number !== +menu.value));
}
