// The tree is in pages.json; scripts/site.py leaves out what is not there.
import {readFileSync} from 'node:fs';

export default {pages: JSON.parse(readFileSync(new URL('./staged/sidebar.json', import.meta.url), 'utf8'))};
