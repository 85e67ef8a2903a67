// The day's curve, the strip of coverage under it, and the year. Drawn by uPlot.

import { percent, time } from "./format.js";

const HEIGHT = 340;
const STRIP = 84;
const SYNC = "day";
// The same for both, so that a quarter-hour is at the same place in them.
const PADDING = [12, 16, 0, 0];
const STRIP_PADDING = [8, 16, 8, 0];

function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = [
    "ink", "muted", "grid", "demand", "forecast", "band", "yesterday", "week", "limit",
    "l1", "l2", "l3", "refused", "covered",
  ];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// Each quarter-hour as two points, so that a step is a step and a gap is a break.
function stepped(view, length) {
  const xs = view.windows.flatMap((at) => [at, at + length - 1]);
  const twice = (values) => values.flatMap((value) => [value, value]);
  return { xs, twice };
}

// With as many digits as tell one tick from the next.
function megawattTicks(ticks) {
  const step = Math.abs((ticks[1] ?? 1e6) - (ticks[0] ?? 0)) / 1e6;
  let digits = 0;
  while (digits < 6 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits++;
  return ticks.map((watts) => (watts / 1e6).toFixed(digits));
}

function demandOf(view) {
  return view.measured.map((value, at) => view.estimated[at] ?? value);
}

export class DayChart {
  constructor(chart, strip, now) {
    this.now = now;
    this.element = chart;
    this.strip = strip;
    this.plot = null;
    this.view = null;
    this.watchers = [];
    this.seen = new ResizeObserver(() => this.resize());
    this.seen.observe(chart);
  }

  // view: of /api/day; rules: of the controller or null; length: of a window, seconds.
  show(view, rules, length) {
    Object.assign(this, { view, rules, length });
    const { xs, twice } = stepped(view, length);
    const demand = demandOf(view);
    const data = [
      xs, twice(view.expected), twice(view.high), twice(view.low),
      twice(view.last_week), twice(view.yesterday), twice(demand),
    ];
    const covered = view.count.map((count, at) => (count === null ? null : count / view.enrolled[at]));
    const strip = [xs, twice(covered)];
    if (this.plot && this.dayShown === `${view.day} ${this.look()}`) {
      this.plot.setData(data);
      this.stripPlot.setData(strip);
      return;
    }
    this.dayShown = `${view.day} ${this.look()}`;
    this.draw(data, strip);
  }

  look() {
    return JSON.stringify(this.rules ?? null);
  }

  // After a change of theme, zone or size.
  redraw() {
    this.dayShown = "";
    if (this.view) this.show(this.view, this.rules, this.length);
  }

  resize() {
    const width = this.element.clientWidth;
    if (!this.plot || !width || width === this.width) return;
    this.width = width;
    this.plot.setSize({ width, height: HEIGHT });
    this.stripPlot.setSize({ width, height: STRIP });
  }

  draw(data, strip) {
    this.plot?.destroy();
    this.stripPlot?.destroy();
    const colour = (this.colour = colours());
    this.width = this.element.clientWidth || 600;
    this.plot = new uPlot(this.dayOptions(colour), data, this.element);
    this.stripPlot = new uPlot(this.stripOptions(colour), strip, this.strip);
  }

  dayOptions(colour) {
    const line = (label, stroke, more = {}) => ({ label, stroke, points: { show: false }, ...more });
    return {
      width: this.width,
      height: HEIGHT,
      padding: PADDING,
      legend: { show: false },
      cursor: { sync: { key: SYNC }, drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false, range: () => this.span() }, y: { range: (_, low, high) => this.reach(low, high) } },
      axes: [this.timeAxis(colour), {
        stroke: colour.ink,
        grid: { stroke: colour.grid, width: 1 },
        ticks: { stroke: colour.grid },
        size: 64,
        label: "MW",
        labelSize: 18,
        values: (_, ticks) => megawattTicks(ticks),
      }],
      series: [
        {},
        line("forecast", colour.forecast, { width: 1.5, dash: [6, 4] }),
        line("high", "transparent"),
        line("low", "transparent"),
        line("last week", colour.week, { width: 1.2, dash: [2, 3] }),
        line("yesterday", colour.yesterday, { width: 1.2 }),
        line("demand", colour.demand, { width: 2.5 }),
      ],
      bands: [{ series: [2, 3], fill: colour.band }],
      hooks: {
        drawClear: [(plot) => this.shade(plot)],
        draw: [(plot) => this.hatch(plot), (plot) => this.limits(plot)],
        setCursor: [(plot) => this.read(plot)],
      },
    };
  }

  stripOptions(colour) {
    return {
      width: this.width,
      height: STRIP,
      padding: STRIP_PADDING,
      legend: { show: false },
      cursor: { sync: { key: SYNC }, drag: { x: false, y: false }, points: { show: false }, y: false },
      scales: { x: { time: false, range: () => this.span() }, y: { range: () => [0, 1] } },
      axes: [{ ...this.timeAxis(colour), show: false }, {
        stroke: colour.ink,
        grid: { show: false },
        ticks: { stroke: colour.grid },
        size: 64,
        label: "meters",
        labelSize: 18,
        splits: () => [0, 0.5, 1],
        values: (_, ticks) => ticks.map((share) => percent(share, 0)),
      }],
      series: [{}, { stroke: colour.covered, fill: colour.covered, width: 1, points: { show: false } }],
      hooks: { draw: [(plot) => this.missing(plot)] },
    };
  }

  timeAxis(colour) {
    return {
      stroke: colour.ink,
      grid: { stroke: colour.grid, width: 1 },
      ticks: { stroke: colour.grid },
      splits: () => this.hours(),
      values: (_, ticks) => ticks.map((at) => time(at)),
    };
  }

  span() {
    const { windows } = this.view;
    return [windows[0], windows[windows.length - 1] + this.length];
  }

  // Every third hour by the clock that is shown: right also on days of 23 and 25 hours.
  hours() {
    const step = this.width < 520 ? 6 : 3;
    return this.view.windows.filter((at) => {
      const [hour, minute] = time(at).split(":").map(Number);
      return minute === 0 && hour % step === 0;
    });
  }

  // From zero, so that heights compare, up to whatever is larger: demand or capacity.
  reach(low, high) {
    const top = Math.max(high ?? 0, this.rules?.capacity_w ?? 0, 1);
    return [Math.min(0, low ?? 0), top * 1.08];
  }

  place(plot, at) {
    const from = plot.valToPos(this.view.windows[at], "x", true);
    return [from, plot.valToPos(this.view.windows[at] + this.length, "x", true) - from];
  }

  // From when a level was signalled until another was.
  shade(plot) {
    const { ctx, bbox } = plot;
    const [first, last] = this.span();
    this.view.levels.forEach(([at, level], place, levels) => {
      if (!level) return;
      const until = Math.min(levels[place + 1]?.[0] ?? this.now(), last);
      if (until <= first) return;
      const x = plot.valToPos(Math.max(at, first), "x", true);
      ctx.fillStyle = this.colour[`l${level}`];
      ctx.fillRect(x, bbox.top, plot.valToPos(until, "x", true) - x, bbox.height);
    });
  }

  // What was measured stays solid below; what is estimated for missing meters is hatched above.
  hatch(plot) {
    const { ctx } = plot;
    ctx.save();
    ctx.strokeStyle = this.colour.demand;
    ctx.lineWidth = devicePixelRatio;
    this.view.estimated.forEach((estimate, at) => {
      if (estimate === null) return;
      const [x, width] = this.place(plot, at);
      const top = plot.valToPos(estimate, "y", true);
      this.stripe(ctx, x, top, width, plot.valToPos(this.view.measured[at], "y", true) - top);
    });
    ctx.restore();
  }

  missing(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = this.colour.refused;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    this.view.status.forEach((status, at) => {
      if (status === null || status === "released") return;
      const [x, width] = this.place(plot, at);
      this.stripe(ctx, x, bbox.top, width, bbox.height);
    });
    ctx.restore();
  }

  stripe(ctx, x, y, width, height) {
    const step = 5 * devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(x, y, width, Math.max(height, 0));
    ctx.clip();
    ctx.beginPath();
    for (let shift = -height; shift < width; shift += step) {
      ctx.moveTo(x + shift, y + height);
      ctx.lineTo(x + shift + height, y);
    }
    ctx.stroke();
    ctx.restore();
  }

  limits(plot) {
    if (!this.rules) return;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = this.colour.limit;
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    // Side by side, since the lines may be close together.
    const lines = [[this.rules.capacity_w, "capacity", [], 6]];
    this.rules.thresholds_w.forEach((watts, at) => lines.push([watts, `level ${at + 1}`, [4, 5], 70 + 52 * at]));
    for (const [watts, label, dash, indent] of lines) {
      if (label === "level 3" && watts === this.rules.capacity_w) continue;
      const y = plot.valToPos(watts, "y", true);
      ctx.setLineDash(dash.map((size) => size * devicePixelRatio));
      ctx.lineWidth = (dash.length ? 1 : 2) * devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.fillText(label, bbox.left + indent * devicePixelRatio, y - 4 * devicePixelRatio);
    }
    ctx.restore();
  }

  read(plot) {
    const { idx } = plot.cursor;
    if (idx !== null && idx !== undefined) this.onRead?.(Math.floor(idx / 2));
  }

  // For keys: the cursor on a quarter-hour.
  point(at) {
    const left = this.plot.valToPos(this.view.windows[at] + this.length / 2, "x");
    const value = demandOf(this.view)[at] ?? 0;
    this.plot.setCursor({ left, top: this.plot.valToPos(value, "y") });
    this.onRead?.(at);
  }
}

// Many days, a line a series. view: of /api/range.
export function yearChart(element, view) {
  const colour = colours();
  const length = view.measured.length;
  const xs = Array.from({ length }, (_, at) => view.first + at * view.step);
  const line = (label, stroke, scale = "y") => ({ label, stroke, scale, width: 1, points: { show: false } });
  const options = {
    width: element.clientWidth || 600,
    height: HEIGHT,
    legend: { show: false },
    scales: { x: { time: false }, level: { range: [0, 12] } },
    axes: [
      {
        stroke: colour.ink,
        grid: { stroke: colour.grid },
        values: (_, ticks) => ticks.map((at) => time(at, { day: "numeric", month: "short" })),
      },
      {
        stroke: colour.ink,
        grid: { stroke: colour.grid },
        size: 64,
        label: "MW",
        labelSize: 18,
        values: (_, ticks) => megawattTicks(ticks),
      },
    ],
    series: [
      {},
      line("last week", colour.week),
      line("yesterday", colour.yesterday),
      line("estimated", colour.forecast),
      line("demand", colour.demand),
      line("level", colour.limit, "level"),
    ],
  };
  const data = [xs, view.last_week, view.yesterday, view.estimated, view.measured, view.level];
  return new uPlot(options, data, element);
}
