import { Frame } from "./frame.mjs";
import { html, render } from "./html.mjs";

render(html`<${Frame} />`, document.getElementById("app"));
