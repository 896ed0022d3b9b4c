// The key lives as long as the tab. It is never put into an address, a cookie or what outlives the tab.
const PLACE = "steersman-key";

export const storedKey = () => sessionStorage.getItem(PLACE);
export const storeKey = (key) => sessionStorage.setItem(PLACE, key);
export const forgetKey = () => sessionStorage.removeItem(PLACE);
