// Whether what the page shows is what was proven: pure functions of both; "" if it is.

// A window's row. view: of /api/day; at: its place there; city: of /api/state.
export function rowDifference(proven, view, at, city) {
  if (at < 0 || view.status[at] === null) return "";
  if (proven.status !== view.status[at]) return "the log says otherwise of this window";
  const columns = [view.sum, view.measured, view.estimated, view.count, view.enrolled, view.lanes];
  const shown = columns.map((column) => column[at]);
  const same = `${shown}` === `${figures(proven, city)}` && `${view.left_out[at]}` === `${proven.leftOut ?? []}`;
  return same ? "" : "the figures shown are not those that were signed";
}

// The demand at the top of the page.
export function tileDifference(proven, city) {
  const newest = city.newest;
  if (newest?.window_start !== proven.windowStart || newest.status !== "released") return "";
  const [sum, , , count, enrolled] = figures(proven, city);
  const same = sum === newest.sum && count === newest.count && enrolled === newest.enrolled;
  return same ? "" : "the demand shown is not what was signed";
}

// Sum, power measured and estimated, meters, enrolled meters, lanes: all that the page may show of
// what was signed, computed from it.
function figures(proven, city) {
  if (proven.status !== "released") return [null, null, null, null, null, null];
  const { unit, sum } = proven.sums[city.register] ?? {};
  if (unit !== "Wh" || proven.windowLength !== city.window_length) return [];
  const { count, enrolled, lanes } = proven;
  const measured = floorOf(sum * 3600n, proven.windowLength);
  const estimated = count === enrolled || !count ? null
    : floorOf(sum * 3600n * BigInt(enrolled), proven.windowLength * count);
  return [Number(sum), measured, estimated, count, enrolled, lanes];
}

// Towards minus infinity, as the console does: a sum with noise may be negative.
function floorOf(above, below) {
  const whole = above / BigInt(below);
  return Number(above < 0n && whole * BigInt(below) !== above ? whole - 1n : whole);
}
