// The text of the selected request: the prompt as it is, one element for each generated token.
import { format } from "./numbers.js";

// Level from which on a token is a milestone, once L newer tokens have followed: a quarter.
const QUARTER = 2;
// Words that are asked for again, since only later tokens may complete a character.
const AGAIN = 16;

export class Text {
  constructor({ hover, pin }) {
    this.box = document.getElementById("text");
    this.prompt = document.getElementById("prompt");
    this.words = document.getElementById("words");
    this.pin = pin;
    this.clear();
    const point = (event, act) => event.target.dataset.place && act(Number(event.target.dataset.place));
    this.words.addEventListener("mouseover", (event) => point(event, hover));
    this.words.addEventListener("click", (event) => point(event, pin));
    this.box.addEventListener("keydown", (event) => this.move(event));
  }

  clear() {
    this.texts = [];
    this.codes = [];
    this.marked = null;
    this.promptLength = 0;
    this.prompt.textContent = "";
    this.words.replaceChildren();
  }

  get length() {
    return this.texts.length;
  }

  get from() {
    return Math.max(0, this.length - AGAIN);
  }

  word(place) {
    return this.texts[this.promptLength + place];
  }

  show(answer) {
    const follows = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    this.promptLength = answer.prompt;
    this.takeWords(answer);
    this.colour(answer);
    if (answer.at !== answer.step) this.reveal(this.words.children[answer.at]);
    else if (follows) this.box.scrollTop = this.box.scrollHeight;
  }

  // Back in time, the text above its end may be all that was written: its end comes into view.
  reveal(last) {
    const end = last?.getBoundingClientRect().bottom;
    if (end < this.box.getBoundingClientRect().top + 24) last.scrollIntoView({ block: "end" });
  }

  takeWords(answer) {
    const { words, words_from: from, prompt } = answer;
    const before = this.texts.length;
    this.texts.splice(from, this.texts.length - from, ...words);
    if (from < prompt) {
      document.getElementById("prompt-length").textContent = format(prompt);
      this.prompt.textContent = this.texts.slice(0, prompt).join("");
    }
    const nodes = this.words.children;
    for (let place = Math.max(0, from - prompt); place < this.texts.length - prompt; place++) {
      if (nodes[place] === undefined) this.append(place);
      const word = this.texts[prompt + place];
      if (nodes[place].textContent !== word) nodes[place].textContent = word;
    }
    for (let place = before; place > this.texts.length; place--) this.words.lastChild?.remove();
    this.codes.length = nodes.length;
  }

  append(place) {
    const node = document.createElement("span");
    node.dataset.place = place;
    node.id = `token-${place}`;
    this.words.append(node);
  }

  // Only elements whose class changes are touched.
  colour(answer) {
    const { held, at, budget } = answer;
    const nodes = this.words.children;
    const live = at === answer.step;
    for (let place = 0; place < nodes.length; place++) {
      let code = "t later";
      if (place < held.length && held[place] !== ".") {
        const isMilestone = budget !== null && at - place >= budget && held[place] >= QUARTER;
        code = `t ${isMilestone ? "m" : "l"}${held[place]}`;
      } else if (place <= at || live) code = "t lu";
      if (this.codes[place] === code) continue;
      this.codes[place] = code;
      nodes[place].className = place === this.marked ? `${code} at` : code;
    }
  }

  mark(place) {
    this.words.children[this.marked]?.classList.remove("at");
    this.marked = place;
    const node = this.words.children[place];
    node?.classList.add("at");
    this.box.setAttribute("aria-activedescendant", `token-${place}`);
    return node;
  }

  move(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (way === undefined) return;
    event.preventDefault();
    const last = this.words.children.length - 1;
    const place = this.marked === null ? last : Math.min(last, Math.max(0, this.marked + way));
    if (place < 0) return;
    this.pin(place, true);
    this.words.children[place].scrollIntoView({ block: "nearest" });
  }
}
