"use strict";
// What every page does: its theme, its tables, its download. Names come from a file that anybody may
// have written: they reach the page as text only.

const $ = (id) => document.getElementById(id);
const make = (tag, text = "", properties = {}) =>
  Object.assign(document.createElement(tag), { textContent: text }, properties);
const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// ---- Colours

const themes = ["auto", "light", "dark"];

function showTheme() {
  const theme = document.documentElement.dataset.theme;
  const [sign, word] = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[theme].split(" ");
  $("theme").querySelector("span").textContent = sign;
  $("theme").querySelector("b").textContent = word; // for which a narrow page has no room
  $("theme").setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system has them" : theme}`);
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
  try { localStorage.setItem("reludiag-theme", root.dataset.theme); } catch { /* not kept, then */ }
  showTheme();
  document.dispatchEvent(new Event("themed"));
});
for (const [event, now] of [["beforeprint", true], ["afterprint", false]])
  addEventListener(event, () => {
    for (const part of document.querySelectorAll(now ? "details:not([open])" : "details[data-shut]")) {
      part.toggleAttribute("data-shut", now); // on paper nobody can open it
      part.open = now;
    }
  });

// ---- Tables

function sortable(table, sort) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries())
    head.firstElementChild.addEventListener("click", () => {
      // Numbers begin with the largest, which is mostly what is looked for; text with A.
      const before = head.getAttribute("aria-sort");
      const rising = before ? before === "descending" : !head.classList.contains("n");
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      sort(column, rising, head.classList.contains("n"));
    });
}
const collator = new Intl.Collator("en", { numeric: true });
const compared = (a, b, numbers) => (numbers ? Number(a) - Number(b) : collator.compare(a, b));

// A table whose rows stand in the page: sorted by its cells, searched by the names of its rows.
for (const table of document.querySelectorAll("table[data-sorts]")) {
  const [body] = table.tBodies;
  const key = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
  sortable(table, (column, rising, numbers) => body.append(...[...body.rows].sort((a, b) => {
    const [first, second] = [key(a, column), key(b, column)]; // what is not known comes last
    return (first === "") - (second === "") || compared(first, second, numbers) * (rising ? 1 : -1);
  })));
  $(`${table.dataset.sorts}-search`).addEventListener("input", ({ target }) => {
    const wanted = target.value.trim().toLowerCase();
    let left = 0;
    for (const row of body.rows) {
      row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
      left += !row.hidden;
    }
    $(`${table.dataset.sorts}-none`).hidden = left > 0;
  });
}

function download(csv, name) {
  const url = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
  make("a", "", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

showTheme();
