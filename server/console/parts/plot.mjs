import { html, useEffect, useRef } from "../html.mjs";

const VERSION = import.meta.url.replace(/\/parts\/plot\.mjs.*$/, "");
let loading = null;

/** uPlot and its style, fetched when the first plot is drawn. */
function library() {
  loading ??= Promise.all([
    import("../vendor/uplot.mjs"),
    new Promise((done) => {
      const style = document.createElement("link");
      style.rel = "stylesheet";
      style.href = `${VERSION}/vendor/uplot.css`;
      style.onload = style.onerror = done;
      document.head.append(style);
    }),
  ]).then(([module]) => module.default);
  return loading;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * `data` is `[x, y, …]`; `series` names each y: `{label, colour, points, bars, axis, dash}`. `marks` are x values
 * with a line of their own: `{at, label, colour}`. `summary` says in words what the picture shows.
 */
export function Plot({ data, series, x, y, y2, summary, height = 220, marks = [], range }) {
  const place = useRef(null);
  useEffect(() => {
    let plot = null;
    let over = false;
    const draw = async () => {
      const UPlot = await library();
      if (over || !place.current) return;
      plot?.destroy();
      plot = new UPlot(options(UPlot, { series, x, y, y2, height, marks, range, width: place.current.clientWidth }), data, place.current);
    };
    draw();
    const resized = new ResizeObserver(() => place.current && plot?.setSize({ width: place.current.clientWidth, height }));
    resized.observe(place.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", draw);
    return () => {
      over = true;
      resized.disconnect();
      scheme.removeEventListener("change", draw);
      plot?.destroy();
    };
  }, [JSON.stringify([data, series, marks])]);
  return html`<figure class="plot" role="img" aria-label=${summary}><div ref=${place}></div></figure>`;
}

function options(UPlot, { series, x, y, y2, height, marks, range, width }) {
  const grid = { stroke: colour("line"), width: 1 };
  const axis = (label, more = {}) => ({ label, stroke: colour("soft"), grid, ticks: grid, labelSize: 22, size: 44, ...more });
  return {
    width,
    height,
    scales: { x: { time: false, ...(range?.x ? { range: range.x } : {}) }, y: range?.y ? { range: range.y } : {}, y2: {} },
    legend: { show: series.length > 1, live: false },
    cursor: { drag: { x: false, y: false } },
    axes: [axis(x, { size: 34 }), axis(y), ...(y2 ? [axis(y2, { side: 1, scale: "y2", grid: { show: false } })] : [])],
    series: [
      { label: x },
      ...series.map((each) => ({
        label: each.label,
        stroke: colour(each.colour),
        width: each.points ? 0 : 2,
        dash: each.dash,
        scale: each.axis ?? "y",
        fill: each.bars ? `${colour(each.colour)}66` : undefined,
        paths: each.bars ? UPlot.paths.bars({ size: [0.8, 60] }) : each.stepped ? UPlot.paths.stepped({ align: 1 }) : undefined,
        points: { show: !each.bars && !each.stepped, size: each.points ? 7 : 5, fill: colour(each.colour) },
      })),
    ],
    hooks: { draw: [(plot) => marks.forEach((mark) => drawMark(plot, mark))] },
  };
}

function drawMark(plot, { at, label, colour: name }) {
  const left = plot.valToPos(at, "x", true);
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour(name);
  ctx.setLineDash([5, 4]);
  ctx.beginPath();
  ctx.moveTo(left, bbox.top);
  ctx.lineTo(left, bbox.top + bbox.height);
  ctx.stroke();
  ctx.font = `${11 * devicePixelRatio}px system-ui`;
  const right = left > bbox.left + bbox.width * 0.85;
  ctx.textAlign = right ? "right" : "left";
  ctx.fillText(label, left + (right ? -4 : 4), bbox.top + 12 * devicePixelRatio);
  ctx.restore();
}
