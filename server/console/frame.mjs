// What stands around every page: sign-in, navigation, and word of a server that is gone.

import { ActivityPage } from "./activity/page.mjs";
import { get, onAnswer } from "./api.mjs";
import { BehavioursPage } from "./behaviours/page.mjs";
import { html, useEffect, useState } from "./html.mjs";
import { forgetKey, storedKey } from "./key.mjs";
import { KeysPage } from "./keys/page.mjs";
import { Notice } from "./parts/notice.mjs";
import { address, usePlace } from "./place.mjs";
import { PlaygroundPage } from "./playground/page.mjs";
import { PoliciesPage } from "./policies/page.mjs";
import { SignIn } from "./signin.mjs";
import { VectorsPage } from "./vectors/page.mjs";

const PAGES = [
  ["playground", "Playground", PlaygroundPage],
  ["vectors", "Vectors", VectorsPage],
  ["policies", "Policies", PoliciesPage],
  ["behaviours", "Behaviours", BehavioursPage],
  ["activity", "Activity", ActivityPage],
  ["keys", "Keys and usage", KeysPage],
];
const ASK_AGAIN = 2000; // milliseconds

export function Frame() {
  const [facts, setFacts] = useState(null);
  const [refusal, setRefusal] = useState(null);
  const [known, setKnown] = useState(storedKey() !== null);
  const gone = useGone();
  const signOut = (why = null) => {
    forgetKey();
    setFacts(null);
    setKnown(false);
    setRefusal(why);
  };
  useEffect(() => {
    if (!known || facts) return undefined;
    const ask = () =>
      get("/capabilities").then(setFacts, (error) => {
        if (error.status === 401) signOut(error.message);
        else if (error.status) setRefusal(error.message);
      });
    ask();
    const again = setInterval(ask, ASK_AGAIN);
    return () => clearInterval(again);
  }, [known, facts]);
  useEffect(() => onAnswer((status) => status === 401 && storedKey() && signOut("This key is no longer accepted.")), []);

  if (!known)
    return html`<${SignIn} problem=${refusal} onDone=${(found) => {
      setRefusal(null);
      setFacts(found);
      setKnown(true);
    }} />`;
  if (!facts)
    return html`<main class="waiting">
      <p role="status">${gone ? "The server does not answer. Trying again…" : "Asking the server…"}</p>
      ${refusal && html`<${Notice} kind="bad">${refusal}<//>`}
      <button class="quiet" onClick=${() => signOut()}>Sign out</button>
    </main>`;
  return html`<${Pages} facts=${facts} gone=${gone} onSignOut=${() => signOut()} />`;
}

function Pages({ facts, gone, onSignOut }) {
  const { page, id } = usePlace();
  const [name, title, Page] = PAGES.find(([known]) => known === page) ?? PAGES[0];
  useEffect(() => {
    document.title = `${title} · Steersman`;
  }, [title]);
  return html`
    <a class="skip" href="#content" onClick=${(event) => {
      event.preventDefault();
      document.getElementById("content").focus();
    }}>Skip to the page</a>
    <header class="rail">
      <div class="brand"><span class="wheel" aria-hidden="true">⎈</span> Steersman</div>
      <nav aria-label="Pages">
        ${PAGES.map(
          ([each, label]) =>
            html`<a href=${address(each)} aria-current=${each === name ? "page" : undefined}>${label}</a>`,
        )}
      </nav>
      <div class="rail-foot">
        <span class="served" title=${facts.model}>${facts.model.split("/").pop()}</span>
        <button class="quiet" onClick=${onSignOut}>Sign out</button>
      </div>
    </header>
    <main id="content" tabindex="-1">
      ${gone && html`<${Notice} kind="bad">The server does not answer. What you see may be old; asking again…<//>`}
      <${Page} facts=${facts} id=${id} key=${name} />
    </main>
  `;
}

/** Whether the last answer failed to come; while it is so, health is asked for. */
function useGone() {
  const [gone, setGone] = useState(false);
  useEffect(() => onAnswer((status) => setGone(status === 0)), []);
  useEffect(() => {
    if (!gone) return undefined;
    const asking = setInterval(() => {
      fetch(new URL("../health", document.baseURI), { cache: "no-store" }).then((answer) => answer.ok && setGone(false), () => {});
    }, ASK_AGAIN);
    return () => clearInterval(asking);
  }, [gone]);
  return gone;
}
