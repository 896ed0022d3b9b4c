import { h } from "preact";
import htm from "htm";

export { Fragment, h, render } from "preact";
export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";

// Texts become text nodes: nothing that a model or a person writes is ever read as markup.
export const html = htm.bind(h);
