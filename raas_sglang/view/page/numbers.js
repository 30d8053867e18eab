// The line of numbers of the selected request, and how numbers and states are written.
const STATES = { stop: "ended", length: "ended by length", abort: "aborted", lost: "lost with its server" };
const NAMES = [
  ["state", (r) => STATES[r.state] ?? r.state],
  ["budget L", (r) => r.budget ?? "none"],
  ["prompt", (r) => r.prompt],
  ["logical", (r) => r.logical],
  ["resident", (r) => r.resident],
  ["evicted", (r) => r.evicted],
];

export function format(value) {
  return typeof value === "number" ? value.toLocaleString("en") : value;
}

export function showNumbers(request) {
  document.getElementById("name").textContent = request.policy;
  document.getElementById("rid").textContent = request.rid;
  document.getElementById("numbers").replaceChildren(
    ...NAMES.map(([name, read]) => pair(name, format(read(request)))),
  );
  for (const node of document.querySelectorAll(".budget")) {
    node.textContent = request.budget === null ? "L" : format(request.budget);
  }
  const note = document.getElementById("note");
  note.hidden = request.back_at.length === 0;
  note.textContent =
    `It was retracted before step ${request.back_at.map(format).join(", ")}: its newest tokens were ` +
    "computed again, and count here as held all along.";
}

export function pair(name, value) {
  const box = document.createElement("div");
  const [term, text] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  text.textContent = value;
  box.append(term, text);
  return box;
}
