// The list of requests: those that run first, then the newest of the others.
import { format } from "./numbers.js";

const MOST = 200;
const SILENT_S = 5;
const SHORT = { stop: "ended", length: "ended", abort: "aborted" };

export class List {
  constructor(node, select) {
    this.node = node;
    this.select = select;
    this.requests = new Map();
    this.items = new Map();
    this.selected = null;
    node.tabIndex = 0;
    node.addEventListener("keydown", (event) => this.move(event));
    setInterval(() => this.age(), 1000);
  }

  // The key that is selected where nobody has chosen.
  get first() {
    return this.order()[0]?.key;
  }

  order() {
    const runs = (request) => (request.state === "running" ? 1 : 0);
    return [...this.requests.values()]
      .sort((a, b) => runs(b) - runs(a) || b.key - a.key)
      .slice(0, MOST);
  }

  take(changed, now) {
    this.lag = Date.now() / 1000 - now;
    for (const request of changed) {
      this.requests.set(request.key, request);
      this.fill(request);
    }
    const order = this.order();
    const kept = new Set(order.map((request) => request.key));
    for (const key of this.requests.keys()) {
      if (kept.has(key) || key === this.selected) continue;
      this.requests.delete(key);
      this.items.get(key).remove();
      this.items.delete(key);
    }
    order.forEach((request, place) => {
      const item = this.items.get(request.key);
      if (this.node.children[place] !== item) this.node.insertBefore(item, this.node.children[place]);
    });
  }

  fill(request) {
    let item = this.items.get(request.key);
    if (item === undefined) {
      item = document.createElement("li");
      item.role = "option";
      item.id = `request-${request.key}`;
      item.innerHTML =
        '<div class="row"><span class="policy"></span><span class="state"></span></div>' +
        '<div class="bar"><i></i><i></i></div>' +
        '<div class="row"><span class="held"></span><span class="rid small"></span></div>';
      item.addEventListener("click", () => this.select(request.key));
      this.items.set(request.key, item);
      this.node.append(item);
    }
    const budget = request.budget === null ? "" : ` ${format(request.budget)}`;
    item.querySelector(".policy").textContent = request.policy + budget;
    item.querySelector(".held").textContent = `${format(request.resident)} of ${format(request.logical)}`;
    item.querySelector(".rid").textContent = request.rid.slice(0, 8);
    item.title = `${request.rid}: ${format(request.resident)} of ${format(request.logical)} tokens are held`;
    const [prompt, held] = item.querySelectorAll("i");
    prompt.style.width = `${(100 * request.prompt) / request.logical}%`;
    held.style.width = `${(100 * (request.resident - request.prompt)) / request.logical}%`;
    this.showState(item, request);
  }

  showState(item, request) {
    const runs = request.state === "running";
    const silent = runs && Date.now() / 1000 - this.lag - request.heard > SILENT_S;
    item.className = runs && !silent ? "running" : "";
    item.querySelector(".state").textContent = silent ? "no news" : (SHORT[request.state] ?? request.state);
  }

  age() {
    for (const [key, item] of this.items) this.showState(item, this.requests.get(key));
  }

  mark(key) {
    this.items.get(this.selected)?.setAttribute("aria-selected", "false");
    this.selected = key;
    const item = this.items.get(key);
    item?.setAttribute("aria-selected", "true");
    item?.scrollIntoView({ block: "nearest" });
    this.node.setAttribute("aria-activedescendant", `request-${key}`);
  }

  move(event) {
    const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (way === undefined) return;
    event.preventDefault();
    const order = this.order();
    const place = order.findIndex((request) => request.key === this.selected) + way;
    if (order[place] !== undefined) this.select(order[place].key);
  }
}
