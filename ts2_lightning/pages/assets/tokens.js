
"use strict";
// The token explorer: a response, token by token, as several models see it. One response is in the document at a time.
(() => {
  // Levels from weak to strong, and the values at which each but the first begins; `falling`: below which it begins.
  const QUANTITIES = {
    entropy: { title: "Entropy", unit: "nats", bounds: [0.05, 0.2, 0.5, 1, 2, 3] },
    support_size: { title: "Support size", unit: "tokens", bounds: [2, 3, 5, 9, 17, 65], whole: true },
    tail_mass: { title: "Tail mass", unit: "", bounds: [0.01, 0.05, 0.1, 0.2, 0.35, 0.5] },
    probability: { title: "Probability", unit: "", bounds: [0.9, 0.7, 0.5, 0.25, 0.1, 0.01], falling: true },
  };
  const MEANINGS = {
    entropy: "of the distribution that the token was drawn from; stronger is less sure",
    support_size: "tokens that sparsemax keeps there; stronger is more",
    tail_mass: "probability outside of the sparsemax support; stronger is more",
    probability: "of the token itself; stronger is less probable",
  };
  const SHOWN = 3;  // models side by side, before the user asks for others

  const element = (name, properties = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "role" || key.startsWith("aria-")) made.setAttribute(key, value);
      else made[key] = value;
    }
    made.append(...children);
    return made;
  };

  const unpack = (text, Kind) => new Kind(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);

  const level = (quantity, value) => {
    const { bounds, falling } = QUANTITIES[quantity];
    const at = bounds.findIndex((bound) => (falling ? value >= bound : value < bound));
    return at < 0 ? bounds.length : at;
  };

  const number = (value) => {
    if (!Number.isFinite(value)) return "not defined";
    if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1);
    return value.toFixed(3);
  };
  const said = (quantity, value) => {
    const { unit, whole } = QUANTITIES[quantity];
    if (whole) return value === 1 ? "1 token" : `${value.toLocaleString("en")} ${unit}`;
    return `${number(value)}${unit ? ` ${unit}` : ""}`;
  };

  // A token as it stands in a table: what is not seen has a sign.
  const visible = (piece) => piece.replaceAll(" ", "\u2423").replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5") || "\u2205";
  // As it stands in the text: lines are broken, but where can be seen.
  const flowing = (piece) => piece.replaceAll("\n", "\u21b5\n") || "\u2205";

  const select = (title, names) => {
    const box = element("select", {}, ...names.map(([value, name]) => element("option", { value }, name)));
    return [box, element("label", {}, element("span", {}, title), box)];
  };

  const shorten = (text, most) => {
    const line = text.trim().replace(/\s+/g, " ");
    return line.length > most ? `${line.slice(0, most)}\u2026` : line;
  };

  class Explorer {
    constructor(root, data) {
      this.root = root;
      this.data = data;
      this.quantity = "entropy";
      this.chosen = null;  // models whose panels are shown; null: the first ones
      this.token = 0;  // the one that has, or had, the focus
      this.tokens = [];
      this.panels = new Map();
      this.marked = [];
      this.reachable = [];
      this.build();
      this.fillTexts();
    }

    build() {
      const [question, questionLabel] = select("Question", this.data.questions.map((text, place) => [place, `${place + 1}. ${shorten(text, 70)}`]));
      const [text, textLabel] = select("Text", []);
      this.question = question;
      this.text = text;
      question.addEventListener("change", () => this.fillTexts());
      text.addEventListener("change", () => this.show());
      const group = element("fieldset", { className: "choices" }, element("legend", {}, "Colour"));
      const name = `quantity-${this.root.parentElement.id}`;
      for (const [key, { title }] of Object.entries(QUANTITIES)) {
        const radio = element("input", { type: "radio", name, value: key, checked: key === this.quantity });
        radio.addEventListener("change", () => { this.quantity = key; this.colour(); });
        group.append(element("label", { title: MEANINGS[key] }, radio, title));
      }
      this.models = element("fieldset", { className: "choices" }, element("legend", {}, "Seen by"));
      this.asked = element("p", { className: "asked", dir: "auto", tabIndex: 0 });
      this.legend = element("div", { className: "scale" });
      this.remark = element("p", { className: "note", dir: "auto" });
      this.panelsBox = element("div", { className: "panels" });
      this.detail = element("div", { className: "detail", tabIndex: 0, role: "region", "aria-label": "The chosen token" });
      this.root.append(
        element("div", { className: "controls" }, questionLabel, textLabel, group, this.models),
        this.asked, this.remark, this.legend, this.panelsBox, this.detail,
        element("p", { className: "note" }, "Point at a token, or move with the arrow keys once one has the focus. "
          + "\u25cf in the support of sparsemax, \u25cb outside, \u2190 the token of the text."),
      );
    }

    // The texts of the chosen question; the one by the same name as before stays chosen.
    fillTexts() {
      const before = this.text.selectedOptions[0]?.textContent;
      const places = [...this.data.texts.keys()].filter((place) => this.data.texts[place].question === Number(this.question.value));
      this.text.replaceChildren(...places.map((place) => element("option", { value: place }, this.data.texts[place].name)));
      const same = [...this.text.options].find((option) => option.textContent === before);
      if (same) same.selected = true;
      this.asked.textContent = this.data.questions[this.question.value];
      this.show();
    }

    show() {
      const text = this.data.texts[this.text.value];
      this.panelsBox.replaceChildren();
      this.panels.clear();
      this.views = new Map();
      this.token = 0;
      if (!text) {
        this.tokens = [];
        this.models.replaceChildren(this.models.firstChild);
        this.remark.textContent = "There is no text to this question.";
        this.paint();
        return;
      }
      this.tokens = unpack(text.tokens, Int32Array);
      this.remark.textContent = text.remark;
      const able = Object.keys(text.views).map(Number).sort((a, b) => a - b);
      const wanted = able.filter((model) => this.chosen?.has(model));
      const shown = new Set(wanted.length ? wanted : able.slice(0, SHOWN));
      this.models.replaceChildren(this.models.firstChild, ...able.map((model) => {
        const box = element("input", { type: "checkbox", checked: shown.has(model), value: model });
        box.addEventListener("change", () => {
          const boxes = [...this.models.querySelectorAll("input")];
          this.chosen = new Set(boxes.filter((other) => other.checked).map((other) => Number(other.value)));
          this.showPanels(text, able.filter((other) => this.chosen.has(other)));
        });
        return element("label", {}, box, this.data.models[model]);
      }));
      this.showPanels(text, [...shown]);
    }

    view(text, model) {
      if (!this.views.has(model)) {
        const packed = text.views[model];
        const whole = new Set(["support_size", "rank", "top"]);
        const entries = Object.entries(packed).map(([name, values]) => [name, unpack(values, whole.has(name) ? Int32Array : Float32Array)]);
        this.views.set(model, Object.fromEntries(entries));
      }
      return this.views.get(model);
    }

    showPanels(text, models) {
      this.panels.clear();
      this.panelsBox.replaceChildren(...models.map((model) => {
        const spans = Array.from(this.tokens, (piece, place) => element("span", { tabIndex: -1, role: "option" }, flowing(this.data.pieces[piece])));
        const body = element("div", { className: "tokens", dir: "auto", role: "listbox", "aria-label": `${text.name}, as ${this.data.models[model]} sees it` }, ...spans);
        this.panels.set(model, { spans, view: this.view(text, model), body });
        this.listen(body, model);
        return element("div", { className: "panel" }, element("h3", { dir: "auto" }, this.data.models[model]), body);
      }));
      this.colour();
    }

    listen(body, model) {
      const placeOf = (target) => this.panels.get(model).spans.indexOf(target);
      body.addEventListener("pointerover", (event) => {
        const place = placeOf(event.target);
        if (place >= 0) this.paint(place);
      });
      body.addEventListener("pointerleave", () => this.paint());
      body.addEventListener("focusin", (event) => {
        const place = placeOf(event.target);
        if (place < 0) return;
        this.token = place;
        this.paint();
      });
      body.addEventListener("click", (event) => event.target.focus());
      body.addEventListener("keydown", (event) => {
        const place = this.moved(event, this.panels.get(model).spans);
        if (place === null) return;
        event.preventDefault();
        this.panels.get(model).spans[place].focus();
      });
    }

    // The token that a key leads to; null for other keys.
    moved(event, spans) {
      if (event.ctrlKey || event.metaKey || event.altKey) return null;
      const last = spans.length - 1;
      const steps = { ArrowRight: this.token + 1, ArrowLeft: this.token - 1, Home: 0, End: last };
      if (event.key in steps) return Math.max(0, Math.min(last, steps[event.key]));
      const sign = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!sign) return null;
      // The nearest token of the next line in that direction.
      const here = spans[this.token].getClientRects()[0];
      let line = null;
      let best = this.token;
      let distance = Infinity;
      for (let place = this.token + sign; place >= 0 && place <= last; place += sign) {
        const box = spans[place].getClientRects()[0];
        if (!box || sign * (box.top - here.top) <= here.height / 2) continue;
        line ??= box.top;
        if (Math.abs(box.top - line) > here.height / 2) break;
        if (Math.abs(box.left - here.left) < distance) {
          distance = Math.abs(box.left - here.left);
          best = place;
        }
      }
      return best;
    }

    colour() {
      for (const { spans, view } of this.panels.values()) {
        const values = view[this.quantity];
        spans.forEach((span, place) => { span.className = `q${level(this.quantity, values[place])}`; });
      }
      this.showScale();
      this.paint();
    }

    showScale() {
      const { title, unit, bounds, falling, whole } = QUANTITIES[this.quantity];
      const range = (place) => {
        const [from, to] = [bounds[place - 1], bounds[place]];
        if (falling) return place === 0 ? `\u2265 ${to}` : place === bounds.length ? `< ${from}` : `${to}\u2013${from}`;
        if (whole) return place === bounds.length ? `\u2265 ${from}` : (from ?? 1) === to - 1 ? `${to - 1}` : `${from ?? 1}\u2013${to - 1}`;
        return place === 0 ? `< ${to}` : place === bounds.length ? `\u2265 ${from}` : `${from}\u2013${to}`;
      };
      this.legend.replaceChildren(
        element("strong", {}, `${title}${unit ? ` (${unit})` : ""}`),
        ...[...bounds, null].map((_, place) => element("span", { className: `q${place}` }, range(place))),
        element("span", { className: "meaning" }, MEANINGS[this.quantity]),
      );
    }

    // Marks a token in all panels and shows what each model thinks there; by default the one that has the focus.
    paint(place = this.token) {
      for (const span of this.marked) span.classList.remove("here");
      for (const span of this.reachable) {
        span.tabIndex = -1;
        span.removeAttribute("aria-selected");
      }
      const panels = this.tokens.length ? [...this.panels.values()] : [];
      this.marked = panels.map(({ spans }) => spans[place]);
      this.reachable = panels.map(({ spans }) => spans[this.token]);
      for (const span of this.marked) span.classList.add("here");
      panels.forEach(({ view, spans }) => this.say(spans[this.token], view));
      this.detail.replaceChildren(...this.details(place));
    }

    // The token that the keyboard reaches, with what a screen reader says of it.
    say(span, view) {
      const facts = Object.entries(QUANTITIES).map(([name, { title }]) => `${title} ${said(name, view[name][this.token])}`);
      const piece = visible(this.data.pieces[this.tokens[this.token]]);
      span.tabIndex = 0;
      span.setAttribute("aria-selected", "true");
      span.setAttribute("aria-label", `${piece}, ${this.token + 1} of ${this.tokens.length}: ${facts.join(", ")}`);
    }

    details(place) {
      if (!this.panels.size || !this.tokens.length) return [element("p", { className: "none" }, "Nothing is chosen.")];
      const piece = this.data.pieces[this.tokens[place]];
      const head = element("p", { className: "chosen" }, `Token ${place + 1} of ${this.tokens.length}: `, element("code", { dir: "auto" }, visible(piece)));
      const cards = [...this.panels.entries()].map(([model, { view }]) => this.card(model, view, place));
      return [head, element("div", { className: "cards" }, ...cards)];
    }

    card(model, view, place) {
      const count = view.top.length / this.tokens.length;
      const support = view.support_size[place];
      const own = this.tokens[place];
      const rows = [];
      let listed = false;
      for (let rank = 0; rank < count; rank += 1) {
        const probability = view.top_probabilities[place * count + rank];
        const piece = view.top[place * count + rank];
        if (!(probability > 0) && rank > 0) break;
        listed ||= piece === own;
        rows.push(this.row(piece, probability, rank < support, piece === own));
      }
      if (!listed) rows.push(this.row(own, view.probability[place], view.rank[place] <= support, true, view.rank[place]));
      const facts = Object.keys(QUANTITIES).map((name) => element("div", {}, element("dt", {}, QUANTITIES[name].title), element("dd", {}, said(name, view[name][place]))));
      facts.push(element("div", {}, element("dt", {}, "Rank"), element("dd", {}, view.rank[place].toLocaleString("en"))));
      return element("div", { className: "card" }, element("h4", { dir: "auto" }, this.data.models[model]), element("dl", {}, ...facts), element("ol", {}, ...rows));
    }

    row(piece, probability, inSupport, isOwn, rank = null) {
      const bar = element("i");
      bar.style.width = `${Math.max(0, Math.min(1, probability)) * 100}%`;
      return element(
        "li", { className: `${isOwn ? "own" : ""}${inSupport ? " in" : ""}` },
        element("span", { className: "dot", role: "img", "aria-label": inSupport ? "in the support" : "outside of the support" }, inSupport ? "\u25cf" : "\u25cb"),
        element("code", { dir: "auto" }, visible(this.data.pieces[piece])),
        element("span", { className: "mark" }, `${isOwn ? "\u2190" : ""}${rank === null ? "" : ` rank ${rank.toLocaleString("en")}`}`),
        element("span", { className: "bar", "aria-hidden": "true" }, bar),
        element("span", { className: "p" }, number(probability)),
      );
    }
  }

  document.querySelectorAll(".explorer").forEach((root) => {
    const script = root.nextElementSibling;
    new Explorer(root, JSON.parse(script.textContent));
    script.remove();
  });
})();
