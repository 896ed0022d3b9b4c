// What stands around every page: sign-in, navigation, and word of a server that is gone.

import { get, onAnswer } from "./api.mjs";
import { html, useEffect, useState } from "./html.mjs";
import { forgetKey, storedKey } from "./key.mjs";
import { Notice } from "./parts/notice.mjs";
import { address, usePlace } from "./place.mjs";
import { SignIn } from "./signin.mjs";

// Each page is fetched when it is first opened.
const PAGES = [
  ["playground", "Playground", async () => (await import("./playground/page.mjs")).PlaygroundPage],
  ["vectors", "Vectors", async () => (await import("./vectors/page.mjs")).VectorsPage],
  ["policies", "Policies", async () => (await import("./policies/page.mjs")).PoliciesPage],
  ["behaviours", "Behaviours", async () => (await import("./behaviours/page.mjs")).BehavioursPage],
  ["activity", "Activity", async () => (await import("./activity/page.mjs")).ActivityPage],
  ["keys", "Keys and usage", async () => (await import("./keys/page.mjs")).KeysPage],
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
  const [name, title, load] = PAGES.find(([known]) => known === page) ?? PAGES[0];
  const [Page, problem] = useFetched(name, load);
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
      ${problem && html`<${Notice} kind="bad">This page could not be fetched; reload it once the server answers.<//>`}
      ${Page && html`<${Page} facts=${facts} id=${id} key=${name} />`}
    </main>
  `;
}

const fetched = new Map();

/** `[component, problem]` of a page; the component is null until it is there. */
function useFetched(name, load) {
  const [problem, setProblem] = useState(null);
  const [, setCount] = useState(0);
  useEffect(() => {
    setProblem(null);
    if (fetched.has(name)) return;
    load().then((Page) => {
      fetched.set(name, Page);
      setCount((before) => before + 1);
    }, setProblem);
  }, [name]);
  return [fetched.get(name) ?? null, problem];
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
