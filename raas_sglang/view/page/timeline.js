// The lives of the tokens: each a line, from the step that wrote it to the one that gave it up.
import { format } from "./numbers.js";

const LEFT = 8;
const BOTTOM = 18;
const TOP = 4;
// The picture is fetched anew at most this often, and never while one is on its way.
const PAUSE_MS = 1000;

export class Timeline {
  constructor(canvas, { hover, goTo }) {
    this.canvas = canvas;
    this.note = document.getElementById("lives-note");
    this.picture = document.createElement("canvas");
    this.clear();
    const point = (event, act) => this.tokens && act(this.at(event));
    canvas.addEventListener("mousemove", (event) => point(event, ({ token }) => hover(token)));
    canvas.addEventListener("click", (event) => point(event, ({ step }) => goTo(step)));
    new ResizeObserver(() => this.answer && this.fetch()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  clear() {
    this.answer = this.bytes = this.place = null;
    this.tokens = 0;
    this.drawn = -1;
    delete this.canvas.dataset.step;
  }

  show(answer) {
    const isNew = this.answer === null || answer.step !== this.drawn;
    this.answer = answer;
    this.canvas.hidden = answer.heads === 0;
    this.note.textContent = answer.heads === 0 ? nothingToDraw(answer) : caption(answer);
    if (isNew && answer.heads) this.fetch();
    this.draw();
  }

  async fetch() {
    if (this.fetching) return;
    this.fetching = true;
    const { key, step } = this.answer;
    const scale = window.devicePixelRatio || 1;
    const rows = Math.max(1, Math.round((this.canvas.clientHeight - BOTTOM - TOP) * scale));
    const columns = Math.max(1, Math.round((this.canvas.clientWidth - 2 * LEFT) * scale));
    try {
      const answer = await fetch(`/requests/${key}/picture?rows=${rows}&columns=${columns}`);
      const bytes = new Uint8Array(await answer.arrayBuffer());
      if (answer.ok && this.answer?.key === key) {
        const read = (name) => Number(answer.headers.get(name));
        Object.assign(this, { bytes, rows: read("X-Rows"), columns: read("X-Columns"), tokens: read("X-Tokens"), drawn: step });
        this.paint();
      }
    } catch {
      // the stream of events says that nobody answers
    }
    setTimeout(() => {
      this.fetching = false;
      if (this.answer && (this.answer.step !== this.drawn || this.answer.key !== key) && this.answer.heads) this.fetch();
    }, PAUSE_MS);
  }

  paint() {
    if (this.bytes === null || this.bytes.length === 0) return;
    const style = getComputedStyle(document.documentElement);
    const rgb = (name) => style.getPropertyValue(name).split(",").map(Number);
    const [held, mark] = [rgb("--held"), rgb("--mark")];
    const colours = new Uint8ClampedArray(4 * 256);
    for (let value = 1; value < 64; value++) {
      const isMilestone = value >= 32;
      const level = (value & 31) >> 1;
      const silent = this.answer.notes_uses && !(value & 1);
      const strength = (isMilestone ? 0.45 + 0.06 * level : 0.04 + 0.05 * level) * (silent ? 0.45 : 1);
      colours.set([...(isMilestone ? mark : held), 255 * strength], 4 * value);
    }
    this.picture.width = this.columns;
    this.picture.height = this.rows;
    const image = new ImageData(this.columns, this.rows);
    const words = new Uint32Array(image.data.buffer);
    const palette = new Uint32Array(colours.buffer);
    this.bytes.forEach((value, place) => (words[place] = palette[value]));
    this.picture.getContext("2d").putImageData(image, 0, 0);
    this.draw();
  }

  get box() {
    return { width: this.canvas.clientWidth - 2 * LEFT, height: this.canvas.clientHeight - BOTTOM - TOP };
  }

  draw() {
    const { canvas, answer, tokens } = this;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    if (answer === null || tokens === 0) return;
    const { width, height } = this.box;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.translate(LEFT, TOP);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.picture, 0, 0, width, height);
    canvas.dataset.step = this.drawn;
    const style = getComputedStyle(document.documentElement);
    const [quiet, focus] = ["--quiet", "--focus"].map((name) => style.getPropertyValue(name));
    const x = (step) => (step / Math.max(1, tokens)) * width;
    const y = (token) => (token / Math.max(1, tokens)) * height;
    this.axes(context, { x, y, width, height, quiet, tokens, budget: answer.budget });
    context.fillStyle = focus;
    context.fillRect(x(answer.at + 1) - 0.5, 0, 1, height);
    if (this.place !== null) context.fillRect(x(this.place), y(this.place + 0.5) - 0.5, width - x(this.place), 1);
  }

  axes(context, { x, y, width, height, quiet, tokens, budget }) {
    context.strokeStyle = context.fillStyle = quiet;
    context.lineWidth = 1;
    context.font = "11px system-ui, sans-serif";
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(x(budget), 0);
    context.lineTo(width, y(tokens - budget));
    context.stroke();
    context.setLineDash([]);
    context.fillRect(0, height, width, 1);
    const gap = niceGap(tokens, width / 90);
    context.textAlign = "center";
    for (let step = gap; step < tokens - gap / 3; step += gap) context.fillText(format(step), x(step), height + 14);
    context.textAlign = "left";
    context.fillText("step 0", 0, height + 14);
    context.fillText("a line for each token, oldest above", 0, height - 6);
    context.textAlign = "right";
    context.fillText(format(tokens), width, height + 14);
  }

  at(event) {
    const { width, height } = this.box;
    const within = (part) => Math.min(this.tokens - 1, Math.max(0, Math.floor(part * this.tokens)));
    return { step: within((event.offsetX - LEFT) / width), token: within((event.offsetY - TOP) / height) };
  }

  mark(place) {
    this.place = place;
    this.draw();
  }
}

function niceGap(length, most) {
  const rough = length / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((gap) => gap >= rough);
}

function caption(answer) {
  const uses = answer.notes_uses ? " Strong until its last use, pale after it." : "";
  return `Right of the dashed line, a window of the newest ${format(answer.budget)} tokens would hold nothing: what is still drawn there are milestones.${uses}`;
}

function nothingToDraw(answer) {
  return answer.evicted === 0 ? "Nothing was given up, so every token is held to the end." : "";
}
