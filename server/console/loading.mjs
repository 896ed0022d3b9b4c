import { useCallback, useEffect, useRef, useState } from "./html.mjs";

/** `{value, error, loading, reload}` of what `load(signal)` fetches, again whenever `inputs` change. */
export function useLoaded(load, inputs = []) {
  const [state, setState] = useState({ value: null, error: null, loading: true });
  const [turn, setTurn] = useState(0);
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    const abort = new AbortController();
    setState((before) => ({ ...before, loading: true }));
    latest.current(abort.signal).then(
      (value) => abort.signal.aborted || setState({ value, error: null, loading: false }),
      (error) => abort.signal.aborted || setState((before) => ({ ...before, error, loading: false })),
    );
    return () => abort.abort();
  }, [turn, ...inputs]);
  const reload = useCallback(() => setTurn((before) => before + 1), []);
  return { ...state, reload };
}

/** `[run, busy, error]`: `run(...)` does `action(signal, ...)` once at a time, and what it raises is kept. */
export function useAction(action) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const abort = useRef(null);
  const run = async (...given) => {
    abort.current?.abort();
    const own = new AbortController();
    abort.current = own;
    setBusy(true);
    setError(null);
    try {
      return await action(own.signal, ...given);
    } catch (raised) {
      if (raised.name !== "AbortError") setError(raised);
      return undefined;
    } finally {
      if (abort.current === own) setBusy(false);
    }
  };
  run.stop = () => abort.current?.abort();
  useEffect(() => () => abort.current?.abort(), []);
  return [run, busy, error, setError];
}
