// The token is behind the hash of the address: it reaches the server in this request's body only.
const token = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
if (token) {
  const answer = await fetch("/login", { method: "POST", body: token });
  if (answer.ok) {
    location.replace("/");
  } else {
    document.getElementById("told").textContent =
      "This address was used before, or is not the newest. Start the console again for another.";
  }
}
