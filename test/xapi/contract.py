# SPDX-License-Identifier: GPL-2.0-or-later
#
# Holds the stand-in of the daemon to docs/openapi.yaml: every request that sm/ makes and every answer it is given must fit the
# description, down to the last property.
import os
import re

import yaml

SPEC = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'docs', 'openapi.yaml')


class Drift(AssertionError):
    pass


class Contract(object):
    def __init__(self, path=SPEC):
        with open(path) as f:
            self.spec = yaml.safe_load(f)

    def resolve(self, schema):
        """The schema, and its name if it has one."""
        name = None
        while '$ref' in schema:
            at = self.spec
            for part in schema['$ref'].lstrip('#/').split('/'):
                at = at[part]
            name, schema = schema['$ref'].rsplit('/', 1)[1], at
        return schema, name

    def check(self, value, schema, where):
        schema, name = self.resolve(schema)
        where = name or where
        if value is None:
            if schema.get('nullable'):
                return
            raise Drift('%s is null' % where)
        kinds = {'object': dict, 'array': list, 'string': str, 'integer': int, 'number': (int, float), 'boolean': bool}
        kind = schema.get('type', 'object')
        if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != 'boolean'):
            raise Drift('%s is %r, not %s' % (where, value, kind))
        if 'enum' in schema and value not in schema['enum']:
            raise Drift('%s is %r, not one of %s' % (where, value, schema['enum']))
        if 'pattern' in schema and not re.search(schema['pattern'], value):
            raise Drift('%s is %r' % (where, value))
        if value is not True and ('minimum' in schema and value < schema['minimum'] or 'maximum' in schema and value > schema['maximum']):
            raise Drift('%s is %r, out of range' % (where, value))
        if kind == 'array':
            for item in value:
                self.check(item, schema['items'], where + '[]')
        if kind == 'object':
            self.check_object(value, schema, where)

    def check_object(self, value, schema, where):
        properties = schema.get('properties', {})
        for key in schema.get('required', ()):
            if key not in value:
                raise Drift('%s has no %s' % (where, key))
        for key, item in value.items():
            if key in properties:
                self.check(item, properties[key], '%s.%s' % (where, key))
            elif isinstance(schema.get('additionalProperties'), dict):
                self.check(item, schema['additionalProperties'], '%s.%s' % (where, key))
            else:
                raise Drift('%s has a property %s that docs/openapi.yaml does not know' % (where, key))

    def route(self, method, path):
        """The route's key in the description, its operation, and parameters that its path has for all operations."""
        for pattern, item in self.spec['paths'].items():
            if re.fullmatch(re.sub(r'\{[^}]*\}', '[^/]+', pattern), path) and method.lower() in item:
                return pattern, item[method.lower()], item.get('parameters', [])
        raise Drift('docs/openapi.yaml has no %s %s' % (method, path))

    def check_request(self, method, path, query, body):
        pattern, operation, shared = self.route(method, path)
        parameters = [self.resolve(p)[0] for p in operation.get('parameters', []) + shared]
        known = {p['name'] for p in parameters if p['in'] == 'query'}
        if set(query) - known:
            raise Drift('%s %s has no parameter %s' % (method, pattern, set(query) - known))
        wanted, _ = self.resolve(operation.get('requestBody', {}))
        if not wanted:
            if body:
                raise Drift('%s %s takes no body' % (method, pattern))
            return
        self.check(body, wanted['content']['application/json']['schema'], '%s %s' % (method, pattern))

    def check_answer(self, method, path, status, body):
        pattern, operation, _ = self.route(method, path)
        if status != 200:
            error = self.spec['components']['responses']['Error']['content']['application/json']['schema']
            return self.check(body, error, 'Error')
        content = operation['responses']['200'].get('content')
        if content:
            self.check(body, content['application/json']['schema'], '%s %s' % (method, pattern))
