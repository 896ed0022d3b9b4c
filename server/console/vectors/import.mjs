import { send } from "../api.mjs";
import { html } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { FileButton } from "../parts/field.mjs";
import { Problem } from "../parts/notice.mjs";

const TYPES = { json: "application/json", safetensors: "application/x-safetensors", gguf: "application/gguf" };

/** Axionic's JSON, safetensors, or repeng's GGUF. */
export function ImportVector({ onMade }) {
  const [upload, busy, error] = useAction(async (signal, file) => {
    const extension = file.name.split(".").pop().toLowerCase();
    const name = file.name.slice(0, -extension.length - 1).slice(0, 200);
    // A JSON file may say its own name, and then no query may: it is sent as it is.
    const query = extension === "json" ? "" : `?name=${encodeURIComponent(name)}`;
    const type = TYPES[extension] ?? "application/octet-stream";
    const body = new Blob([await file.arrayBuffer()], { type });
    const response = await send("POST", `/steering/vectors${query}`, { body, signal, headers: { "content-type": type } });
    onMade((await response.json()).id);
  });
  return html`<${FileButton} label=${busy ? "Importing…" : "Import"} accept=".json,.safetensors,.gguf" onFile=${upload} disabled=${busy} /><${Problem} error=${error} />`;
}
