"use strict";
const rows = JSON.parse(document.getElementById("data").textContent);
const key = document.body.dataset.key;
const field = (name) => document.getElementById(name);
let marks = (history.state && history.state.marks) || {};
try { marks = JSON.parse(localStorage.getItem(key)) || marks; } catch { /* as the page's history has them */ }
const PER_PAGE = 50;
let page = 0, chosen = [];

function keep() {
  history.replaceState({ marks }, "");
  try { localStorage.setItem(key, JSON.stringify(marks)); } catch { /* a browser that stores nothing: marks live until the page is closed */ }
  field("marked").textContent = `${rows.filter(markOf).length} marked`;
}

// What a person said of a text stays, whatever threshold the judge's score is read by.
function markOf(row) {
  const mark = marks[row.sample_id];
  if (!mark || mark.text !== row.text || row.score === null) return undefined;
  return mark.yes === row.yes ? "right" : "wrong";
}

function choose() {
  const words = field("search").value.toLowerCase();
  const side = field("side").value, status = field("status").value;
  const kept = field("kept").value, instruction = field("instruction").value;
  const limit = (name, none) => field(name).value === "" ? none : Number(field(name).value);
  const low = limit("low", -Infinity), high = limit("high", Infinity);
  const scoreAsked = field("low").value !== "" || field("high").value !== "";
  const shortest = limit("shortest", 0), longest = limit("longest", Infinity);
  chosen = rows.filter((row) =>
    (!side || row.polarity === side) && (!status || row.status === status) &&
    (!kept || String(row.kept) === kept) && (instruction === "" || String(row.instruction_index) === instruction) &&
    (!scoreAsked || (row.score !== null && row.score >= low && row.score <= high)) &&
    row.response.length >= shortest && row.response.length <= longest &&
    (!words || (row.response + "\n" + row.question).toLowerCase().includes(words)));
  const by = {
    plan: null,
    low: (a, b) => a.score - b.score, high: (a, b) => b.score - a.score,
    short: (a, b) => a.response.length - b.response.length, long: (a, b) => b.response.length - a.response.length,
  }[field("sort").value];
  if (by) {
    const scored = !["low", "high"].includes(field("sort").value) ? chosen : chosen.filter((row) => row.score !== null);
    const rest = chosen.filter((row) => !scored.includes(row));
    chosen = [...scored.sort(by), ...rest];
  }
  page = 0;
  draw();
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function card(row) {
  const box = element("article", undefined, `response ${row.polarity}`);
  box.dataset.id = row.sample_id;
  const head = element("header");
  head.append(element("strong", row.polarity));
  head.append(element("strong", row.score === null ? "no score" : `score ${row.score}`));
  head.append(element("span", row.kept ? "kept" : row.left_out ? `not kept: ${row.left_out}` : "not kept"));
  if (row.status !== "scored") head.append(element("span", row.status));
  if (row.finish_reason === "length") head.append(element("span", "cut off"));
  head.append(element("span", `${row.response.length} characters`));
  head.append(element("code", row.sample_id.slice(0, 8)));
  box.append(head, element("p", row.instruction, "sub"), element("p", row.question), element("blockquote", row.response));
  if (row.score !== null) {
    const choice = element("div", undefined, "marks");
    choice.append(element("span", row.yes ? "judged to show the trait:" : "judged not to show it:"));
    for (const [value, words] of [["right", "the judge is right"], ["wrong", "the judge is wrong"]]) {
      const button = element("button", words);
      button.type = "button";
      button.setAttribute("aria-pressed", String(markOf(row) === value));
      button.addEventListener("click", () => {
        if (markOf(row) === value) delete marks[row.sample_id];
        else marks[row.sample_id] = { yes: row.yes === (value === "right"), text: row.text };
        for (const other of choice.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
        button.setAttribute("aria-pressed", String(markOf(row) === value));
        keep();
      });
      choice.append(button);
    }
    box.append(choice);
  }
  return box;
}

function draw() {
  const begin = page * PER_PAGE;
  field("list").replaceChildren(...chosen.slice(begin, begin + PER_PAGE).map(card));
  const end = Math.min(chosen.length, begin + PER_PAGE);
  const range = `${chosen.length ? begin + 1 : 0} to ${end} of ${chosen.length}`;
  field("count").textContent = `${range} that match, of ${rows.length} here`;
  field("place").textContent = range;
  for (const id of ["back", "back_below"]) field(id).disabled = page === 0;
  for (const id of ["on", "on_below"]) field(id).disabled = end >= chosen.length;
}

function quoted(text) { return `"${String(text).replaceAll('"', '""')}"`; }

function save() {
  const cells = (row) => [row.sample_id, row.polarity, row.score, markOf(row), row.yes ? "yes" : "no", row.text];
  const lines = rows.filter(markOf).map((row) => cells(row).map(quoted).join(","));
  const text = ["sample_id,polarity,score,mark,said,text", ...lines, ""].join("\n");
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = document.body.dataset.file;
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const name of ["search", "side", "status", "kept", "instruction", "low", "high", "shortest", "longest", "sort"]) {
  field(name).addEventListener("input", choose);
}
function turn(by, below) {
  page += by;
  draw();
  if (below) field("list").scrollIntoView();
}
for (const [id, by] of [["back", -1], ["on", 1], ["back_below", -1], ["on_below", 1]]) {
  field(id).addEventListener("click", () => turn(by, id.endsWith("below")));
}
field("save").addEventListener("click", save);
keep();
choose();
