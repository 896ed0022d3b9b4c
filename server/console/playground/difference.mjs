const MOST = 1200; // tokens of each; the table is their product

/** Places in `left` and in `right` that a longest common subsequence leaves out. */
export function difference(left, right) {
  const [a, b] = [left.slice(0, MOST), right.slice(0, MOST)];
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      lengths[i * width + j] =
        a[i] === b[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
  const [leftOut, rightOut] = [new Set(), new Set()];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      i += 1;
      j += 1;
    } else if (j >= b.length || (i < a.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) leftOut.add(i++);
    else rightOut.add(j++);
  }
  return [leftOut, rightOut];
}
