"use strict";
// Draws every plot of the page from the JSON beside it. Strings of a run reach plotly through label(), because
// plotly reads a little markup in names; nothing here makes HTML from data.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const boxes = Array.from(document.querySelectorAll(".plot"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();   // runs switched off
  const logarithmic = new Set();

  const label = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = (index) => css(`--series-${index % 8}`);
  const faint = (hex) => `${hex}b3`;   // 70 % opaque

  function axis(title, more) {
    const grid = css("--grid");
    return {
      title: { text: title, standoff: 8, font: { size: 11, color: css("--muted") } },
      gridcolor: grid, zerolinecolor: grid, linecolor: grid, tickfont: { size: 11 },
      automargin: true, fixedrange: false, ...more,
    };
  }

  // Runs are told apart by marker as well as by colour: a few per curve, where there are several runs.
  const several = document.querySelectorAll("button[data-run]").length > 1;
  const symbols = ["circle", "square", "diamond", "triangle-up"];

  function line(trace, figure) {
    const marked = several && figure.kind === "lines" && trace.dash !== "dot";
    const few = marked || trace.x.length <= 24;
    const drawn = {
      type: "scatter", name: label(trace.name), x: trace.x, y: trace.y, mode: few ? "lines+markers" : "lines",
      line: { color: color(trace.color), width: trace.dash === "dot" ? 1.5 : 1.8, dash: trace.dash },
      marker: marked ? { size: 7, symbol: symbols[trace.run % 4], maxdisplayed: 8 } : { size: 5 }, visible: !hidden.has(trace.run), hovertemplate: "%{y:.4~g}",
    };
    if (trace.error) {
      drawn.error_y = { type: "data", symmetric: false, array: trace.error.plus, arrayminus: trace.error.minus,
        thickness: 1.2, width: 4 };
    }
    return drawn;
  }

  function area(trace, figure) {
    const drawn = line(trace, figure);
    return { ...drawn, mode: "lines", stackgroup: "all", line: { ...drawn.line, width: 0.6 },
      fillcolor: faint(color(trace.color)) };
  }

  function heat(trace, figure) {
    const scale = ["--heat-0", "--heat-1", "--heat-2", "--heat-3"].map((name, i) => [i / 3, css(name)]);
    return {
      type: "heatmap", x: trace.x, y: trace.y, z: trace.z, colorscale: scale,
      zmin: figure.range ? figure.range[0] : undefined, zmax: figure.range ? figure.range[1] : undefined,
      colorbar: { thickness: 8, outlinewidth: 0, tickfont: { size: 10 }, len: 1, title: { text: figure.unit,
        side: "right", font: { size: 11, color: css("--muted") } } },
      hovertemplate: "step %{x}<br>near position %{y}<br>%{z:.4~g}<extra></extra>",
    };
  }

  // Right is filled, wrong is hatched and an outline: apart without colour, and one seen through the other.
  function bars(trace) {
    const wrong = trace.name === "wrong", right = trace.name === "right";
    const ink = css(right ? "--good" : wrong ? "--bad" : "--series-7");
    return {
      type: "bar", name: label(trace.name), x: trace.x, y: trace.y, width: trace.width, customdata: trace.count,
      marker: { color: faint(ink), line: { color: ink, width: wrong ? 1.5 : 0 },
        pattern: wrong ? { shape: "/", fgcolor: ink, bgcolor: "rgba(0,0,0,0)", size: 6, solidity: .25 } : undefined },
      hovertemplate: "%{y:.1%} (%{customdata})",
    };
  }

  function layout(figure, index) {
    const map = figure.kind === "heatmap";
    return {
      uirevision: "kept", height: 240, margin: { l: 8, r: 10, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", font: { family: css("--font"), size: 12, color: css("--text") },
      showlegend: figure.kind === "bars", legend: { orientation: "h", y: 1.12, x: 0, font: { size: 11 } },
      barmode: "overlay", hovermode: map ? "closest" : "x unified",
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), namelength: -1, align: "left",
        font: { family: css("--font"), size: 12, color: css("--text") } },
      xaxis: axis(figure.x, { showgrid: false, nticks: 8, spikethickness: 1,
        spikecolor: css("--muted"), spikedash: "dot", unifiedhovertitle: { text: `${figure.x} %{x}` },
        ...(figure.kind === "bars" ? { range: figure.range ?? undefined, unifiedhovertitle: { text: "%{x:.3~g} nats" } } : {}),
        ...(figure.x === "k" ? powers(figure) : {}) }),
      yaxis: map ? axis("response position (tokens)") : values(figure, logarithmic.has(index)),
      ...findings(figure),
    };
  }

  // Findings that speak of what is drawn: a line at their step, their sign above it.
  function findings(figure) {
    const marks = (figure.marks ?? []).filter((mark) => !hidden.has(mark.run));
    const ink = (mark) => css({ error: "--bad", warning: "--weak" }[mark.severity] ?? "--accent");
    return marks.length === 0 ? {} : {
      margin: { l: 8, r: 10, t: 22, b: 8 },
      shapes: marks.map((mark) => ({ type: "line", x0: mark.x, x1: mark.x, y0: 0, y1: 1, yref: "paper", layer: "below",
        line: { color: ink(mark), width: 1.2, dash: "dot" } })),
      annotations: marks.map((mark) => ({ x: mark.x, y: 1, yref: "paper", yanchor: "bottom", text: mark.sign,
        showarrow: false, font: { size: 11, color: ink(mark) } })),
    };
  }

  // pass@k is measured at powers of two: evenly spaced, and labelled where it was measured.
  function powers(figure) {
    return { type: "log", tickvals: [...new Set(figure.traces.flatMap((trace) => trace.x))] };
  }

  function values(figure, log) {
    const all = figure.traces.flatMap((trace) => trace.y).filter((y) => y !== null);
    const zero = all.every((y) => y === 0);   // plotly would centre such a line between −1 and 1
    return axis(figure.unit, {
      type: log ? "log" : "linear", uirevision: String(log), nticks: 6, dtick: log ? "D2" : undefined,
      range: zero ? [-0.02, 1] : undefined, exponentformat: "power",
      tickformat: figure.kind === "bars" ? ".0%" : all.some((y) => Math.abs(y) >= 10000) ? "," : undefined,
    });
  }

  function draw(index) {
    const figure = figures[index];
    const shape = { lines: line, stack: area, heatmap: heat, bars }[figure.kind];
    const traces = figure.traces.map((trace) => shape(trace, figure));
    return Plotly.react(boxes[index], traces, layout(figure, index), { displayModeBar: false, responsive: true });
  }

  // One plot per task, so that the page can be read and scrolled while the rest is drawn. A folded plot has no
  // width yet: it waits until it is opened.
  async function drawAll(within) {
    for (const [index, box] of boxes.entries()) {
      if (within.contains(box) && box.checkVisibility()) {
        await draw(index);
        await new Promise((resolve) => setTimeout(resolve));
      }
    }
    document.documentElement.dataset.drawn = "all";
  }

  function toggle(button) {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    return on;
  }

  for (const button of document.querySelectorAll("button[data-run]")) {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      if (toggle(button)) hidden.delete(run); else hidden.add(run);
      drawAll(document);
    });
  }

  for (const button of document.querySelectorAll("button[data-log]")) {
    const index = boxes.indexOf(button.closest("figure").querySelector(".plot"));
    button.addEventListener("click", () => {
      if (toggle(button)) logarithmic.add(index); else logarithmic.delete(index);
      draw(index);
    });
  }

  // Without a clipboard (a page from afar, an old browser) the command is selected as a whole by a click.
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }

  for (const fold of document.querySelectorAll("details.more")) {
    fold.addEventListener("toggle", () => drawAll(fold));
  }

  dark.addEventListener("change", () => drawAll(document));
  drawAll(document);
})();
