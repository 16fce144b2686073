
"use strict";
// What is large lies in the page compressed: gzip in base 64. The other scripts use this too.
const unpack = async (element) => {
  const bytes = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};

// Tables are sorted by a click on a head, or by the keyboard; long ones are shown in part, and filtered by words.
(() => {
  const AT_ONCE = 300;  // rows that are shown before the user asks for all
  const FILTER = 15;  // rows from which on there is a field for words

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // Not `row.cells`: each row's would be a list that the browser keeps up to date while rows are moved.
  const cellOf = (row, column) => {
    let cell = row.firstElementChild;
    for (let place = 0; place < column; place += 1) cell = cell.nextElementSibling;
    return cell;
  };

  // Numbers by their value, before texts; what is no number, or nothing, comes last in either direction.
  const place = (cell) => {
    if (cell.dataset.n !== undefined) {
      const value = Number(cell.dataset.n.replace("inf", "Infinity"));
      return Number.isNaN(value) ? [2, 0] : [0, value];
    }
    const text = cell.textContent.trim();
    return text === "" || text === "-" ? [2, 0] : [1, text];
  };
  const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const compare = (a, b, sign) => {
    if (a[0] === 2 || b[0] === 2) return (a[0] === 2) - (b[0] === 2);
    if (a[0] !== b[0]) return sign * (a[0] - b[0]);
    return sign * (a[0] === 0 ? a[1] - b[1] : order.compare(a[1], b[1]));
  };

  class SortableTable {
    constructor(table) {
      this.table = table;
      this.body = table.tBodies[0];
      this.heads = [...table.tHead.rows[0].cells];
      this.written = [...this.body.rows];
      this.rows = this.written;
      this.limit = AT_ONCE;
      this.words = "";
      this.heads.forEach((head, column) => {
        head.classList.toggle("n", this.written.some((row) => cellOf(row, column).dataset.n !== undefined));
        const button = element("button", { type: "button" }, ...head.childNodes);
        button.addEventListener("click", () => this.sort(column));
        head.append(button);
        head.setAttribute("aria-sort", "none");
      });
      if (this.written.length > FILTER) table.parentElement.before(this.tools());
      if (this.written.length > AT_ONCE) this.show();
    }

    tools() {
      const field = element("input", { type: "search", placeholder: "Rows with…" });
      field.setAttribute("aria-label", "Rows with these words");
      field.addEventListener("input", () => {
        this.words = field.value.trim().toLowerCase();
        this.show();
      });
      this.more = element("button", { type: "button", hidden: true }, "Show all");
      this.more.addEventListener("click", () => {
        this.limit = Infinity;
        this.show();
      });
      this.count = element("output", {}, `${this.written.length.toLocaleString("en")} rows`);
      return element("div", { className: "tools" }, field, this.count, this.more);
    }

    sort(column) {
      const head = this.heads[column];
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      this.heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const keyed = this.written.map((row, number) => [place(cellOf(row, column)), number, row]);
      if (next !== "none") keyed.sort((a, b) => compare(a[0], b[0], sign) || a[1] - b[1]);
      this.rows = keyed.map((entry) => entry[2]);
      this.body.remove();
      this.body.textContent = "";  // all at once: to take them out one by one takes half a minute for 20,000
      this.body.append(...this.rows);
      this.table.append(this.body);
      if (this.written.length > AT_ONCE || this.words) this.show();
    }

    show() {
      let fitting = 0;
      for (const row of this.rows) {
        const fits = !this.words || row.textContent.toLowerCase().includes(this.words);
        fitting += fits;
        row.hidden = !fits || fitting > this.limit;
      }
      const shown = Math.min(fitting, this.limit);
      const said = (number) => number.toLocaleString("en");
      this.count.value = shown < this.written.length ? `${said(shown)} of ${said(this.written.length)} rows` : `${said(shown)} rows`;
      this.more.hidden = fitting <= this.limit;
    }
  }

  // A number as Python's format ".4g" writes it, but for exact halves of a last digit, which are rounded up.
  const short = (number) => {
    if (number === null) return "-";
    if (typeof number === "string") return number;
    const [digits, power] = number.toExponential(3).split("e").map(Number);
    if (power >= -4 && power < 4) return String(Number(number.toPrecision(4)));
    return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  };

  // The rows of a large table, of which the page has the columns.
  const rowsOf = (columns) => (columns[0].texts ?? columns[0].numbers).map((_, number) => {
    const row = document.createElement("tr");
    columns.forEach(({ texts, numbers }, column) => {
      const cell = document.createElement(column === 0 && !numbers ? "th" : "td");
      cell.textContent = texts ? texts[number] : short(numbers[number]);
      if (numbers) {
        cell.className = "n";
        cell.dataset.n = numbers[number] ?? "nan";
      } else {
        cell.dir = "auto";
        if (column === 0) cell.scope = "row";
      }
      row.append(cell);
    });
    return row;
  });

  document.querySelectorAll("table.sortable").forEach(async (table) => {
    const packed = table.parentElement.nextElementSibling;
    if (packed?.matches("script.packed")) {
      try {
        for (const row of rowsOf(JSON.parse(await unpack(packed)).columns)) table.tBodies[0].append(row);
      } catch (error) {
        packed.after(element("p", { className: "none" }, `This browser cannot show the table (${error.message}).`));
        return;
      }
    }
    new SortableTable(table);
  });

  // What is closed on the screen is open on paper.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.item:not([open])")];
    opened.forEach((details) => { details.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));
})();
