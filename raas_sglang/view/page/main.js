// Wires the parts together: what is selected, which step is shown, what the server tells.
import { List } from "./list.js";
import { Text } from "./text.js";
import { Timeline } from "./timeline.js";
import { Token } from "./token.js";
import { showNumbers } from "./numbers.js";

const $ = (id) => document.getElementById(id);
const list = new List($("list"), select);
const token = new Token($("token"));
const text = new Text({ hover, pin });
const timeline = new Timeline($("lives"), { hover, goTo });
// at: the step that is shown, null for the newest; answer: what the server said of it last.
const view = { key: null, at: null, answer: null };
let busy = false;
let stale = false;
// Texts of tokens come from the server, which may take its time when nothing else is new.
const WORDS_LATER_MS = 1000;
let later;
let viewer;
// Whether the chosen token stays chosen while the pointer moves on.
let pinned = false;

function select(key) {
  if (key === view.key) return;
  Object.assign(view, { key, at: null, answer: null });
  text.clear();
  timeline.clear();
  chooseNone();
  $("request").hidden = false;
  $("nothing").hidden = true;
  list.mark(key);
  refresh();
}

function hover(place) {
  if (!pinned) choose(place);
}

// A second click lets it go.
function pin(place, isKey = false) {
  pinned = isKey || !pinned || place !== token.place;
  choose(place);
}

function chooseNone() {
  pinned = false;
  text.mark(null);
  timeline.mark(null);
  token.clear();
}

function choose(place) {
  text.mark(place);
  timeline.mark(place);
  token.show(view, place, text.word(place));
}

function goTo(step) {
  view.at = step === null || step >= view.answer.step ? null : Math.max(step, view.answer.first_step);
  refresh();
}

// One question at a time, so a slow answer delays the next and never piles up.
async function refresh() {
  stale = true;
  if (busy) return;
  busy = true;
  while (stale) {
    stale = false;
    const { key, at } = view;
    const step = at === null ? "" : `&step=${at}`;
    const answer = await fetchJson(`/requests/${key}?words_from=${text.from}${step}`);
    if (answer === null) continue;
    // Asked for another request, or for this one before it was left and chosen again.
    if (key !== view.key || answer.words_from > text.length) {
      stale = true;
      continue;
    }
    view.answer = answer;
    text.show(answer);
    showTime(answer);
    showNumbers(answer);
    timeline.show(answer);
    token.update(view);
    clearTimeout(later);
    if (answer.words_from + answer.words.length < answer.tokens) later = setTimeout(refresh, WORDS_LATER_MS);
  }
  busy = false;
}

async function fetchJson(path) {
  try {
    const answer = await fetch(path);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // the stream of events says that nobody answers
  }
}

function showTime(answer) {
  const slider = $("step");
  slider.min = Math.max(0, answer.first_step);
  slider.max = Math.max(0, answer.step);
  slider.value = answer.at;
  $("at").textContent = `${answer.at} of ${answer.step}`;
  $("latest").setAttribute("aria-pressed", String(view.at === null));
}

function listen() {
  const events = new EventSource("/events");
  events.onmessage = (event) => {
    const told = JSON.parse(event.data);
    // Another viewer may name its requests otherwise.
    if (viewer !== undefined && viewer !== told.viewer) location.reload();
    viewer = told.viewer;
    $("status").textContent = told.status;
    list.take(told.requests, told.now);
    if (view.key === null && list.first !== undefined) select(list.first);
    // Whoever looks back is not disturbed, but the slider grows.
    if (told.requests.some((request) => request.key === view.key)) refresh();
  };
  events.onerror = () => {
    $("status").textContent = "the viewer does not answer; trying again";
  };
}

$("step").addEventListener("input", (event) => goTo(Number(event.target.value)));
$("latest").addEventListener("click", () => goTo(null));
$("close").addEventListener("click", chooseNone);
document.addEventListener("keydown", (event) => {
  if (view.answer === null || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "l" || event.key === "L") goTo(null);
  else if (event.key === "Escape") chooseNone();
  else if (event.key === ",") goTo(view.answer.previous);
  else if (event.key === ".") goTo(view.answer.next);
});

listen();
