
"use strict";
// Charts are drawn when they come into sight, with plotly, whose script is in the page, compressed.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const bright = window.matchMedia("(prefers-color-scheme: light)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const BLACK = "#000000";

  const load = async () => {
    const script = document.createElement("script");
    script.textContent = await unpack(document.getElementById("plotly"));  // the policy of the page knows its hash
    document.head.append(script);
    if (!window.Plotly) throw new Error("the script of the charts was not run");
  };
  let loaded = null;

  const legible = (name) => (name === BLACK ? colour("--text") : name);  // black is not seen on a dark ground

  // Data and layout in the colours of the page.
  const themed = (figure) => {
    const data = structuredClone(figure.data);
    for (const trace of data) {
      trace.marker && (trace.marker.color = legible(trace.marker.color));
      trace.line && (trace.line.color = legible(trace.line.color));
      if (trace.fillcolor) trace.fillcolor = trace.fillcolor.replace("rgba(0,0,0", bright.matches ? "rgba(0,0,0" : "rgba(255,255,255");
      trace.visible = figure.hidden.has(trace.legendgroup) ? false : true;
    }
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--soft") };
    const layout = structuredClone(figure.layout);
    return {
      data,
      layout: {
        ...layout,
        xaxis: { ...layout.xaxis, ...axis },
        yaxis: { ...layout.yaxis, ...axis },
        font: { color: colour("--text"), family: "system-ui, sans-serif", size: 13 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--text") }, align: "left" },
      },
    };
  };

  // A sign for the legend: the line with its dashes, or the marker, or the bar with its hatch told by its density.
  const sign = (trace) => {
    const svg = document.createElementNS(SVG, "svg");
    const shape = document.createElementNS(SVG, trace.type === "bar" ? "rect" : trace.mode === "markers" ? "circle" : "line");
    const dashes = { dash: "6 3", dot: "2 3", dashdot: "6 2 2 2" };
    const attributes = {
      rect: { x: 1, y: 1, width: 24, height: 10 },
      circle: { cx: 13, cy: 6, r: 5 },
      line: { x1: 0, y1: 6, x2: 26, y2: 6, "stroke-width": 3, "stroke-dasharray": dashes[trace.line?.dash] ?? "none" },
    }[shape.tagName];
    for (const [name, value] of Object.entries({ width: 26, height: 12, "aria-hidden": "true" })) svg.setAttribute(name, value);
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    shape.setAttribute(shape.tagName === "line" ? "stroke" : "fill", trace.marker.color);
    svg.append(shape);
    if (trace.marker.pattern?.shape) {
      const letter = document.createElementNS(SVG, "text");
      for (const [name, value] of Object.entries({ x: 8, y: 11, "font-size": 12, fill: colour("--ground") })) letter.setAttribute(name, value);
      letter.textContent = trace.marker.pattern.shape.repeat(3);
      svg.append(letter);
    }
    return svg;
  };

  const legend = (chart, figure, draw) => {
    const list = document.createElement("ul");
    list.className = "legend";
    const entries = Object.entries(figure.names);
    for (const [group, name] of entries) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(name);
      button.addEventListener("click", () => {
        figure.hidden.has(group) ? figure.hidden.delete(group) : figure.hidden.add(group);
        button.setAttribute("aria-pressed", String(!figure.hidden.has(group)));
        draw();
      });
      list.append(document.createElement("li"));
      list.lastChild.append(button);
    }
    chart.after(list);
    return (data) => [...list.children].forEach((item, place) => {
      const button = item.firstChild;
      button.querySelector("svg")?.remove();
      button.prepend(sign(data.find((trace) => trace.legendgroup === entries[place][0] && !trace.fill)));
    });
  };

  const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  const drawn = new Map();
  const draw = async (chart) => {
    if (drawn.has(chart)) return;
    drawn.set(chart, null);
    try {
      await (loaded ??= load());
      const numbers = chart.nextElementSibling;
      const figure = JSON.parse(numbers.type === "text/plain" ? await unpack(numbers) : numbers.textContent);
      figure.hidden = new Set();
      const again = () => {
        const { data, layout } = themed(figure);
        signs(data);
        return window.Plotly.react(chart, data, layout, CONFIG);
      };
      const signs = legend(chart, figure, again);
      drawn.set(chart, again);
      await again();
    } catch (error) {
      chart.replaceChildren(Object.assign(document.createElement("p"), {
        className: "none",
        textContent: `This browser cannot draw the chart (${error.message}); its numbers are in the table below.`,
      }));
      chart.style.height = "auto";
    }
  };

  const charts = [...document.querySelectorAll(".chart")];
  const seen = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target));
  }, { rootMargin: "400px" });
  charts.forEach((chart) => seen.observe(chart));
  bright.addEventListener("change", () => drawn.forEach((again) => again?.()));
  window.addEventListener("beforeprint", () => charts.forEach(draw));
})();
