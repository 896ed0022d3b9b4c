import { get } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useLoaded } from "../loading.mjs";
import { Empty, Notice, Problem } from "../parts/notice.mjs";
import { Table } from "../parts/table.mjs";
import { go } from "../place.mjs";
import { unitDose } from "../playground/dose.mjs";
import { fixed, time } from "../words.mjs";
import { ImportVector } from "./import.mjs";
import { MakeVector } from "./make.mjs";
import { VectorView } from "./view.mjs";

const COLUMNS = [
  { name: "Name", cell: (vector) => vector.name ?? vector.label ?? vector.id.slice(0, 8) },
  { name: "Made by", cell: (vector) => (vector.preset ? `preset` : vector.method) },
  { name: "Layers", cell: (vector) => layersOf(vector.layers) },
  { name: "Dose of a layer", number: true, cell: (vector) => fixed(unitDose(vector)) },
  { name: "Made", cell: (vector) => time(vector.created_at) },
];

export const layersOf = (layers) => (layers.length > 4 ? `${layers[0]}–${layers.at(-1)} (${layers.length})` : layers.join(", "));

export function VectorsPage({ facts, id }) {
  const { value: vectors, error, reload } = useLoaded((signal) => get("/steering/vectors?limit=1000&shared=true", { signal }));
  const [making, setMaking] = useState(false);
  const made = (vector) => {
    reload();
    setMaking(false);
    go("vectors", vector);
  };
  if (!facts.steering) return html`<div class="page"><h1>Vectors</h1><${Notice}>${facts.unsteerable}<//></div>`;
  return html`<div class="page">
    <div class="page-head">
      <h1>Vectors</h1>
      <p>Directions in the model's states, made from pairs of answers.</p>
      <span class="spread"></span>
      <${ImportVector} onMade=${made} />
      <button class="primary" aria-pressed=${making} onClick=${() => setMaking(!making)}>New vector</button>
    </div>
    <${Problem} error=${error} />
    ${making && html`<${MakeVector} facts=${facts} onMade=${made} />`}
    <div class="split">
      <section class="card" aria-label="Stored vectors">
        ${vectors?.length
          ? html`<${Table} caption="Stored vectors" columns=${COLUMNS} rows=${vectors} keyOf=${(vector) => vector.id} chosen=${id} onOpen=${(vector) => go("vectors", vector.id)} />`
          : vectors && html`<${Empty} title="No vector yet">Make one from a dozen pairs of answers, or import a file.<//>`}
      </section>
      ${id &&
      html`<${VectorView} key=${id} id=${id} facts=${facts} onGone=${() => {
        reload();
        go("vectors");
      }} />`}
    </div>
  </div>`;
}
