// Draws the charts of a page from the data beside them, with uPlot: at any width, in the colours of a light or a dark
// page. The values under the pointer, or the finger, stand in the legend; the last ones where there is neither.
"use strict";
(() => {
  const HEIGHT = 230, FEW = 40;
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const significant = (value, digits) => String(Number(value.toPrecision(digits)));

  function figure(value) {
    if (value == null) return "-";
    const size = Math.abs(value);
    if (Number.isInteger(value)) return value.toLocaleString("en");
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return size && size < 1e-4 ? value.toExponential(2) : value.toPrecision(4);
  }

  function short(value) {
    const size = Math.abs(value);
    for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size >= unit) return significant(value / unit, 4) + name;
    }
    return size && size < 1e-4 ? value.toExponential(0) : significant(value, 4);
  }

  function duration(seconds) {
    if (seconds < 60) return significant(seconds, 3) + " s";
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
    return `${Math.floor(seconds / 3600)} h ${Math.round(seconds % 3600 / 60)} min`;
  }

  function shortDuration(seconds, longest) {
    const [unit, name] = longest >= 2 * 86400 ? [86400, "d"] : longest >= 7200 ? [3600, "h"]
      : longest >= 120 ? [60, "min"] : [1, "s"];
    return `${significant(seconds / unit, 3)} ${name}`;
  }

  const paths = {
    line: uPlot.paths.linear(),
    steps: uPlot.paths.stepped({align: 1}),
    bars: uPlot.paths.bars({size: [0.8, 100]}),
    points: () => null,
  };

  // The curve's own numbers, without those that have no place on the axis.
  function aligned(chart, curves, axis) {
    const tables = curves.flatMap(curve => {
      const x = chart.xs[curve.x[axis]];
      const kept = x.map((_, at) => at).filter(at => x[at] != null);
      const column = values => [kept.map(at => x[at]), kept.map(at => values[at])];
      return [column(curve.y), ...(curve.low ? [column(curve.low), column(curve.high)] : [])];
    });
    return uPlot.join(tables);
  }

  function seriesOf(chart, panel, axis) {
    const {label, time} = chart.axes[axis];
    // Where training ended says something; the end of a histogram does not.
    const ends = panel.curves.every(curve => curve.mark === "line");
    const told = tell => (u, v, s, at) => at != null ? tell(v) : ends ? tell(lastOf(u, s)) : "";
    const series = [{label, value: told(time ? duration : figure)}];
    const bands = [];
    for (const curve of panel.curves) {
      const points = curve.mark === "points" || curve.mark === "line" && curve.color && curve.y.length <= FEW;
      const color = curve.color ?? style("--many");
      series.push({
        label: curve.label, stroke: color, width: curve.color ? 1.75 : 1, spanGaps: true, paths: paths[curve.mark],
        fill: curve.mark === "bars" ? color + "80" : undefined,
        class: curve.color ? "named" : "many", value: curve.names ? named(chart, curve, axis) : told(figure),
        points: {show: points, size: curve.mark === "points" ? 7 : 5, fill: color, stroke: color},
      });
      if (curve.low) {
        const edge = {class: "edge", stroke: "transparent", points: {show: false}, spanGaps: true, paths: paths.line};
        series.push({...edge}, {...edge});
        bands.push({series: [series.length - 1, series.length - 2], fill: color + "26"});
      }
    }
    return {series, bands};
  }

  // A value with the name of what it is; nothing where the pointer is at another curve's.
  function named(chart, curve, axis) {
    const x = chart.xs[curve.x[axis]];
    return (u, value, s, at) => at == null || value == null ? "" : `${figure(value)} ${curve.names[x.indexOf(u.data[0][at])]}`;
  }

  function lastOf(u, s) {
    const values = u.data[s];
    for (let at = values.length - 1; at >= 0; at--) if (values[at] != null) return values[at];
    return null;
  }

  // Rings around chosen values, and the line where y is x.
  function drawMarks(u, chart, panel, axis) {
    const {ctx} = u, {left, top, width, height} = u.bbox;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    if (panel.diagonal) {
      const low = Math.max(u.scales.x.min, u.scales.y.min), high = Math.min(u.scales.x.max, u.scales.y.max);
      ctx.strokeStyle = style("--faint");
      ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
      ctx.lineWidth = devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(u.valToPos(low, "x", true), u.valToPos(low, "y", true));
      ctx.lineTo(u.valToPos(high, "x", true), u.valToPos(high, "y", true));
      ctx.stroke();
      ctx.setLineDash([]);
    }
    ctx.restore();
    for (const curve of panel.curves) {
      const x = curve.best == null ? null : chart.xs[curve.x[axis]][curve.best];
      if (x == null || x < u.scales.x.min || x > u.scales.x.max) continue;
      ctx.strokeStyle = curve.color;
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.beginPath();
      ctx.arc(u.valToPos(x, "x", true), u.valToPos(curve.y[curve.best], "y", true), 6 * devicePixelRatio, 0, 7);
      ctx.stroke();
    }
  }

  // uPlot counts along a logarithm from its lowest value on, and never ends where that is just below a power of ten.
  function lowest(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return value / power > 9.4 ? 9 * power : value;
  }

  // It counts in powers of ten only from where they are met.
  function roundDown(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return Math.floor(value / power) * power;
  }

  function rangeOf(panel) {
    const [low, high] = panel.range;
    return (u, least, most) => {
      if (least == null) return [panel.logY ? 0.1 : 0, 1];
      if (panel.logY) return [low ?? lowest(least / 1.3), high ?? most * 1.3];
      const around = (most - least || Math.abs(most) || 1) * 0.08;
      return [low ?? least - around, high ?? most + around];
    };
  }

  function draw(place, chart, panel, axis) {
    const {series, bands} = seriesOf(chart, panel, axis);
    const data = aligned(chart, panel.curves, axis);
    const longest = data[0].length ? data[0][data[0].length - 1] : 0;
    const named = series.findIndex(one => one.class === "many");
    const lines = {grid: {stroke: () => style("--grid"), width: 1}, ticks: {show: false}, stroke: () => style("--faint"),
      font: `12px ${getComputedStyle(document.body).fontFamily}`};
    // Of a logarithmic axis the powers of ten, or 1, 2 and 5 of each where there is one at most, or all where none is.
    const round = (value, digits) => digits.some(digit => {
      const power = Math.log10(value / digit);
      return Math.abs(power - Math.round(power)) < 1e-9;
    });
    const tens = (u, values) => {
      const digits = values.filter(value => round(value, [1])).length < 2 ? [1, 2, 5] : [1];
      const kept = values.map(value => round(value, digits) ? value : null);
      return kept.some(value => value != null) ? kept : values;
    };
    const along = log => log ? {filter: tens, grid: {...lines.grid, filter: tens}} : {};
    const few = (u, values) => {
      const texts = values.map(value => value == null ? null : short(value));
      const plain = !panel.logY && texts.every(text => text == null || /^-?[0-9.]+$/.test(text));
      const places = Math.max(...texts.map(text => (text ?? "").split(".")[1]?.length ?? 0));
      return plain ? values.map(value => value == null ? null : value.toFixed(places)) : texts;
    };
    const plot = new uPlot({
      width: place.clientWidth, height: HEIGHT, padding: [10, 12, 0, 0], series, bands,
      scales: {x: {time: false, ...panel.logX && {distr: 3, range: (u, least, most) => [roundDown(least / 1.15), most * 1.15]}}, y: {distr: panel.logY ? 3 : 1, range: rangeOf(panel)}},
      axes: [
        {...lines, ...along(panel.logX), size: 30, gap: 4, space: 62, values: chart.axes[axis].time
          ? (u, values) => values.map(value => shortDuration(value, longest)) : few},
        {...lines, ...along(panel.logY), size: 52, gap: 6, space: 34, values: few},
      ],
      cursor: {y: false, sync: {key: chart.key, scales: ["x", null]}, points: {size: 8},
        focus: {prox: named < 0 ? -1 : 24}},
      focus: {alpha: 1},
      legend: {markers: {width: 0, fill: (u, s) => panel.curves.find(c => c.label === u.series[s].label)?.color ?? style("--many")}},
      hooks: {
        draw: [u => drawMarks(u, chart, panel, axis)],
        setSeries: [(u, s) => nameOneOfMany(place, s)],
      },
    }, data, place);
    nameOneOfMany(place, null);
    plot.over.addEventListener("pointermove", event => {
      if (event.pointerType !== "touch") return;
      const box = plot.over.getBoundingClientRect();
      plot.setCursor({left: event.clientX - box.left, top: event.clientY - box.top});
    });
    return plot;
  }

  // Of many curves in the background the legend has room for one: the one that the pointer is at.
  function nameOneOfMany(place, number) {
    const rows = [...place.querySelectorAll(".u-series")];
    const many = rows.filter(row => row.classList.contains("many"));
    const shown = many.includes(rows[number]) ? rows[number] : many[0];
    for (const row of many) {
      row.classList.toggle("one", row === shown);
      row.classList.toggle("none", row !== rows[number]);
    }
  }

  const charts = [...document.querySelectorAll("figure[data-chart]")].map(holder => {
    const chart = JSON.parse(holder.querySelector("script").textContent);
    return {holder, chart, places: [...holder.querySelectorAll(".plot")], plots: []};
  });

  function drawAll(axisLabel) {
    for (const one of charts) {
      const axis = Math.max(0, one.chart.axes.findIndex(({label}) => label === axisLabel));
      for (const plot of one.plots) plot.destroy();
      one.plots = one.places.map((place, at) => draw(place, one.chart, one.chart.panels[at], axis));
      for (const button of one.holder.querySelectorAll(".axes button")) {
        button.setAttribute("aria-pressed", button.textContent === one.chart.axes[axis].label);
      }
    }
  }

  let chosen = null;
  for (const {holder} of charts) {
    for (const button of holder.querySelectorAll(".axes button")) {
      button.addEventListener("click", () => {
        const before = holder.getBoundingClientRect().top;
        drawAll(chosen = button.textContent);
        scrollBy(0, holder.getBoundingClientRect().top - before);
      });
    }
  }
  drawAll(chosen);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(chosen));
  new ResizeObserver(() => {
    for (const {places, plots} of charts) {
      places.forEach((place, at) => {
        if (place.clientWidth && place.clientWidth !== plots[at].width) plots[at].setSize({width: place.clientWidth, height: HEIGHT});
      });
    }
  }).observe(document.body);

  // Bars: the legend has the figures of the one that the pointer is at.
  for (const holder of document.querySelectorAll(".bars")) {
    const slots = [...holder.querySelectorAll(".key b")], name = holder.querySelector(".of");
    if (!name) continue;
    for (const row of holder.querySelectorAll(".bar")) {
      const tell = () => {
        name.textContent = row.querySelector(".name").textContent;
        JSON.parse(row.dataset.texts).forEach((text, at) => { slots[at].textContent = text; });
      };
      row.addEventListener("pointerenter", tell);
      row.addEventListener("click", tell);
    }
  }
})();
