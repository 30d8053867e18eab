// The panel of the token that is pointed at: what each layer and head did with it.
import { format, pair } from "./numbers.js";

const QUARTER = 0.25;

export class Token {
  constructor(node) {
    this.node = node;
    this.hint = document.getElementById("token-hint");
    this.facts = document.getElementById("token-facts");
    this.word = document.getElementById("token-word");
    this.numbers = document.getElementById("token-numbers");
    this.heads = document.getElementById("token-heads");
    this.legend = document.getElementById("token-key");
    this.clear();
  }

  clear() {
    this.place = this.key = this.life = null;
    this.hint.hidden = false;
    this.facts.hidden = true;
    this.node.classList.remove("chosen");
  }

  // Asks for the newest place alone while an answer is on its way.
  async show(view, place, word) {
    Object.assign(this, { place, key: view.key, text: word });
    if (this.asking) return;
    this.asking = true;
    let asked;
    do {
      asked = { place: this.place, key: this.key };
      this.life = await ask(asked.key, asked.place);
    } while (this.place !== null && (asked.place !== this.place || asked.key !== this.key));
    this.asking = false;
    if (this.place !== null && view.answer?.key === this.key) this.draw(view.answer);
  }

  update(view) {
    if (this.place !== null) this.show(view, this.place, this.text);
  }

  draw(request) {
    const { place, life } = this;
    const at = request.at;
    this.hint.hidden = true;
    this.facts.hidden = false;
    this.node.classList.add("chosen");
    this.word.textContent = this.text?.trim() ? `“${this.text.trim()}”` : "white space";
    const rows = [
      ["generated token", format(place)],
      ["position", format(request.prompt + place)],
      ["written at step", format(place)],
    ];
    const ends = life?.ends ?? [];
    const heads = ends.flat();
    const holds = (end) => end < 0 || end > at;
    const held = heads.filter(holds).length;
    const isMilestone = request.budget !== null && at - place >= request.budget && held >= QUARTER * heads.length;
    if (place > at) rows.push(["at this step", "not written yet"]);
    else if (heads.length) rows.push(["held by", `${format(held)} of ${format(heads.length)} heads${isMilestone ? ": a milestone" : ""}`]);
    else rows.push(["held by", request.evicted === 0 ? "all heads" : "not sampled yet"]);
    const gone = heads.filter((end) => !holds(end));
    if (gone.length) rows.push(["given up", between(gone)]);
    if (life?.last_use >= 0 && request.notes_uses) rows.push(["last used", `by step ${format(life.last_use)}`]);
    this.numbers.replaceChildren(...rows.map(([name, value]) => pair(name, value)));
    this.drawHeads(ends, holds, isMilestone);
  }

  // Layers from left to right, KV heads from above to below.
  drawHeads(ends, holds, isMilestone) {
    const layers = ends.length;
    this.heads.className = isMilestone ? "milestone" : "";
    this.heads.style.gridTemplateColumns = `repeat(${layers}, minmax(0, ${layers > 12 ? 1 : 1.2}rem))`;
    const cells = [];
    for (let head = 0; head < (ends[0]?.length ?? 0); head++) {
      for (let layer = 0; layer < layers; layer++) {
        const cell = document.createElement("i");
        const end = ends[layer][head];
        cell.className = holds(end) ? "" : "gone";
        cell.title = `layer ${layer}, head ${head}: ${holds(end) ? "held" : `given up by step ${end}`}`;
        cells.push(cell);
      }
    }
    this.heads.replaceChildren(...cells);
    this.legend.textContent = layers ? "A square for each head, layers from left to right; filled: it holds the token." : "";
  }
}

function between(steps) {
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  return first === last ? `by step ${format(first)}` : `from step ${format(first)} to ${format(last)}`;
}

async function ask(key, place) {
  try {
    const answer = await fetch(`/requests/${key}/tokens/${place}`);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}
