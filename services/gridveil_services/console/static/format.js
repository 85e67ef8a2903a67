// Figures and times as people read them. A missing figure is a dash, never a zero.

export const DASH = "–";

let shownZone = "UTC";
const formats = new Map();

export function showZone(zone) {
  shownZone = zone;
}

export function zoneShown() {
  return shownZone;
}

export function time(seconds, options = { hour: "2-digit", minute: "2-digit" }) {
  const key = `${shownZone} ${JSON.stringify(options)}`;
  if (!formats.has(key)) {
    const chosen = { hourCycle: "h23", timeZone: shownZone, ...options };
    formats.set(key, new Intl.DateTimeFormat("en-GB", chosen));
  }
  return formats.get(key).format(seconds * 1000);
}

export function clockTime(seconds) {
  const options = { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" };
  return `${time(seconds, { year: "numeric", month: "short", day: "numeric" })}, ${time(seconds, options)}`;
}

// A quarter-hour's beginning; with the zone's name where a local hour comes twice.
export function windowTime(seconds, windows) {
  const label = time(seconds);
  const twice = windows.some((other) => Math.abs(other - seconds) === 3600 && time(other) === label);
  return twice ? `${label} ${zoneName(seconds)}` : label;
}

function zoneName(seconds) {
  return time(seconds, { hour: "2-digit", timeZoneName: "short" }).replace(/^\d+\s*/, "");
}

export function megawatts(watts, digits = 3) {
  return watts === null || watts === undefined ? DASH : `${(watts / 1e6).toFixed(digits)} MW`;
}

export function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

export function duration(seconds) {
  const minutes = Math.max(0, Math.floor(seconds / 60));
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

// The day of a time in the zone shown, as 2026-11-28.
export function isoDay(seconds, zone) {
  const parts = new Intl.DateTimeFormat("en-CA", {
    timeZone: zone,
    year: "numeric",
    month: "2-digit",
    day: "2-digit",
  });
  return parts.format(seconds * 1000);
}

export function shiftDay(day, days) {
  const moved = new Date(`${day}T12:00:00Z`);
  moved.setUTCDate(moved.getUTCDate() + days);
  return moved.toISOString().slice(0, 10);
}
