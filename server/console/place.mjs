// Where in the console one is: `#/activity/ID?…` in the address, which never holds a text or a key.

import { useEffect, useState } from "./html.mjs";

const read = () => {
  const [page = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return { page: page || "playground", id: rest.length ? rest.join("/") : null };
};

export const address = (page, id = null) => `#/${page}${id === null ? "" : `/${encodeURIComponent(id)}`}`;
export const go = (page, id = null) => {
  location.hash = address(page, id);
};

export function usePlace() {
  const [place, setPlace] = useState(read);
  useEffect(() => {
    const moved = () => setPlace(read());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  return place;
}
